"""Memory that one thread uses again and again: fresh blocks cost more in page faults than the arithmetic in them."""

import torch


class Space:
    """float32 and int32 blocks, grown to the largest that were asked for."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def block(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The block of this name, with whatever is in it: the same memory for the same name."""
        count = torch.Size(shape).numel()
        held = self._held.get((name, dtype))
        if held is None or len(held) < count:
            held = self._held[name, dtype] = torch.empty(count, dtype=dtype)
        return held[:count].view(shape)
