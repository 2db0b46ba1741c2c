"""Between which two stored numbers a number lies."""

from dataclasses import dataclass
from typing import Protocol

import torch

from merge.rounding.space import Space

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float8_e4m3fn: torch.int8}
E4M3_VALUES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()  # torch's own conversion takes five times as long
E4M3_OVERFLOW = 464.0  # what lies beyond rounds to 480, which e4m3 has not (IEEE 754-2019 §7.4)
E4M3_LAST = E4M3_VALUES.nan_to_num(448.0).copysign(E4M3_VALUES)  # NaN stands behind ±448: there, the last number itself


class Grid(Protocol):
    """The numbers that a slab of a tensor can hold."""

    def bracket(self, exact: torch.Tensor, start: int, space: Space) -> tuple[torch.Tensor, torch.Tensor]:
        """The largest grid point not above each number, and the smallest not below it: equal where the number is one.

        exact  (n, columns)  float32, rows start … of the tensor
        returns  the blocks "low" and "high" of `space`, of that shape, float32

        Beyond the last grid point both are the last one; both are NaN or infinite for what has no place at all.
        """


class Scales(Protocol):
    """What the codes of a tensor are multiplied by, in place, rows start … of it."""

    def multiply(self, exact: torch.Tensor, start: int) -> None:
        """Codes become values."""

    def divide(self, exact: torch.Tensor, start: int) -> None:
        """Values become what is rounded to a code."""


@dataclass(frozen=True, slots=True)
class Floats:
    """A floating-point format of sign, exponent and mantissa, times the scale of each block where there are scales.

    dtype  bfloat16, float16, float8_e4m3fn, or float32, in which every float32 number is a grid point

    The bits of such a format, less the sign, count its magnitudes in order: the next one away from zero is the next integer.
    """

    dtype: torch.dtype
    scales: Scales | None = None

    def bracket(self, exact: torch.Tensor, start: int, space: Space) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Grid`."""
        near, other, away = (space.block(name, exact.shape) for name in ("low", "high", "away"))
        if self.dtype == torch.float32:
            return near.copy_(exact), other.copy_(exact)
        other.copy_(exact)
        if self.scales:
            self.scales.divide(other, start)
        codes = other.to(self.dtype).view(BITS[self.dtype])
        self._decode(codes, near, start, space, E4M3_VALUES)
        if self.dtype == torch.float8_e4m3fn and not bool(torch.abs(other, out=away).amax() <= E4M3_OVERFLOW):
            near.masked_fill_(~(away <= E4M3_OVERFLOW), torch.nan)  # torch's conversion gives 448 for whatever lies beyond
        if not _finite(near):
            return near, other.copy_(near)
        torch.abs(exact, out=away).sub_(torch.abs(near, out=other)).sign_()  # +1: the other neighbour is farther from zero; 0: on the grid
        self._decode(codes.add_(away.to(codes.dtype)), other, start, space, E4M3_LAST)
        if not _finite(other):
            other.copy_(torch.where(other.isfinite(), other, near))
        away.copy_(near)
        return torch.minimum(away, other, out=near), torch.maximum(away, other, out=other)

    def _decode(self, codes: torch.Tensor, values: torch.Tensor, start: int, space: Space, table: torch.Tensor) -> None:
        if self.dtype == torch.float8_e4m3fn:
            index = space.block("codes", codes.shape, torch.int32).copy_(codes.view(torch.uint8))
            torch.index_select(table, 0, index.view(-1), out=values.view(-1))
        else:
            values.copy_(codes.view(self.dtype))
        if self.scales:
            self.scales.multiply(values, start)


def _finite(values: torch.Tensor) -> bool:
    """The sum shows a NaN or an infinity sooner than a look at every element."""
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())
