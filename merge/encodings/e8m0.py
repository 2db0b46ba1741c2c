"""Eight bits of exponent and nothing else: 2^(byte − 127), 255 is no number. Source: OCP microscaling formats, E8M0."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class E8M0:
    """Powers of two, as scales are stored. dtype  F8_E8M0, or U8 where a checkpoint keeps the bytes without their meaning"""

    dtype: str

    def view(self, raw: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The first bytes of a uint8 buffer, read as powers of two."""
        return raw[: torch.Size(shape).numel()].view(torch.float8_e8m0fnu).view(shape)

    def decode(self, stored: torch.Tensor, exact: torch.Tensor) -> None:
        """Exact: float32 holds every power of two from 2⁻¹²⁷ to 2¹²⁷."""
        exact.copy_(stored)

    def encode(self, exact: torch.Tensor, stored: torch.Tensor) -> bool:
        """False for what is no power of two: scales that grow are doubled, so that nothing is ever rounded."""
        stored.copy_(exact)
        return torch.equal(stored.float(), exact)


BYTES = E8M0("F8_E8M0")
UNNAMED = E8M0("U8")
