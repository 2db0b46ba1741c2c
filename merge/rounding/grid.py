"""Between which two stored numbers a number lies."""

from dataclasses import dataclass
from typing import Protocol

import torch

from merge.rounding.space import Space

EXPONENT = 0x7F800000  # bits of a float32 that say which power of two it lies above
DOUBTFUL = 16  # in last places: what a grid point can lose when it is multiplied by its scale and divided again, and more
LAST = {torch.bfloat16: 3.3961775292304601e38, torch.float16: 65519.99609375, torch.float8_e4m3fn: 464.0}
"""The largest float32 that still rounds to a finite number of a format: half a step above its last one (IEEE 754-2019 §7.4)."""


@dataclass(frozen=True, slots=True)
class Bracket:
    """Where each number lies between two grid points, all (n, columns) float32 and counted in units of the scale.

    low   the largest grid point not above it          past  how far above
    step  from there to the smallest grid point not below it: 0 where the number is one

    Beyond the last grid point, low is that one and step is 0; low is NaN for what has no place at all.
    """

    low: torch.Tensor
    step: torch.Tensor
    past: torch.Tensor


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

    Between two powers of two its numbers lie evenly: as far apart as the lower one times the format's epsilon.
    """

    dtype: torch.dtype
    scales: Scales | None = None

    def bracket(self, exact: torch.Tensor, start: int, space: Space) -> Bracket:
        """Around rows start … of a tensor, in blocks of `space`. exact  (n, columns)  float32

        All but the division by a scale is exact: it is by powers of two, and of numbers with fewer bits than float32 has.
        """
        low, step, past = (space.block(name, exact.shape) for name in ("low", "step", "past"))
        low.copy_(exact)
        if self.dtype == torch.float32:
            return Bracket(low, step.zero_(), past.zero_())
        if self.scales:
            self.scales.divide(low, start)
            low.view(torch.int32).add_(DOUBTFUL // 2).bitwise_and_(-DOUBTFUL)
        format, excess = torch.finfo(self.dtype), None
        if not bool(torch.abs(low, out=step).amax() <= format.max):
            inside = low.clamp(-format.max, format.max)
            excess = low - inside
            low.copy_(torch.where(step <= LAST[self.dtype], inside, torch.nan))
            torch.abs(low, out=step)
        step.clamp_min_(format.smallest_normal).view(torch.int32).bitwise_and_(EXPONENT)
        step.mul_(format.eps)
        torch.div(low, step, out=past)
        torch.floor(past, out=low)
        past.sub_(low)
        low.mul_(step)
        between = torch.ceil(past, out=space.block("raised", exact.shape))
        past.mul_(step)
        step.mul_(between)
        return Bracket(low, step, past if excess is None else past.add_(excess))
