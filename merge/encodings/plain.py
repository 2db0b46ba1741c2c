"""IEEE-like numbers stored one by one: BF16, F16, F32."""

from dataclasses import dataclass

import torch

from merge import rounding


@dataclass(frozen=True, slots=True)
class Plain:
    """One element, one number.

    dtype  the format's name in a safetensors header      stored  the torch dtype of its bits      width  bytes per element
    """

    dtype: str
    stored: torch.dtype
    width: int

    def view(self, raw: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The first bytes of a uint8 buffer, read as elements of this encoding."""
        count = self.width * torch.Size(shape).numel()
        return raw[:count].view(self.stored).view(shape)

    def decode(self, stored: torch.Tensor, exact: torch.Tensor) -> None:
        """Exact: float32 holds every BF16 and F16 number."""
        exact.copy_(stored)

    def encode(self, exact: torch.Tensor, stored: torch.Tensor) -> bool:
        """Rounded once; False if a value became infinite or is not a number."""
        return rounding.nearest(exact, stored)


BF16 = Plain("BF16", torch.bfloat16, 2)
F16 = Plain("F16", torch.float16, 2)
F32 = Plain("F32", torch.float32, 4)
