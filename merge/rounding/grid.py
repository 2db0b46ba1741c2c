"""Between which two stored numbers a number lies."""

from dataclasses import dataclass
from typing import Protocol

import torch

from merge.rounding.space import Space

EXPONENT = 0x7F800000  # bits of a float32 that say which power of two it lies above
STRIP = 1 << 16  # numbers that are looked at together: four blocks of them stay in a core's second cache
DOUBTFUL = 16  # in last places: what a grid point can lose when it is multiplied by its scale and divided again, and more
LAST = {torch.bfloat16: 3.3961775292304601e38, torch.float16: 65519.99609375, torch.float8_e4m3fn: 464.0}
"""The largest float32 that still rounds to a finite number of a format: half a step above its last one (IEEE 754-2019 §7.4)."""


@dataclass(frozen=True, slots=True)
class Bracket:
    """Where each number lies between two grid points; all (n, columns) float32.

    low   the largest grid point not above it, counted in units of the scale: a code        past  how far above, as a value
    step  from there to the smallest grid point not below it, as a value: 0 where the number is one

    Beyond the last grid point, low is that one and step is 0; low is NaN for what has no place at all.
    """

    low: torch.Tensor
    step: torch.Tensor
    past: torch.Tensor


class Scales(Protocol):
    """What the codes of a tensor are multiplied by, in place, rows start … of it."""

    def multiply(self, exact: torch.Tensor, start: int) -> None:
        """Codes become values."""


@dataclass(frozen=True, slots=True)
class Floats:
    """A floating-point format of sign, exponent and mantissa, times the scale of each block where there are scales.

    dtype  bfloat16, float16, float8_e4m3fn, or float32, in which every float32 number is a grid point

    Between two powers of two its numbers lie evenly: as far apart as the lower one times the format's epsilon.
    """

    dtype: torch.dtype
    scales: Scales | None = None

    def bracket(self, exact: torch.Tensor, start: int, space: Space) -> Bracket:
        """Around rows start … of a tensor, in blocks of `space`. exact  (n, columns)  float32, counted in units of the scale"""
        low, step, past = (space.block(name, exact.shape) for name in ("low", "step", "past"))
        low.copy_(exact)
        if self.dtype == torch.float32:
            return Bracket(low, step.zero_(), past.zero_())
        if self.scales:
            low.view(torch.int32).add_(DOUBTFUL // 2).bitwise_and_(-DOUBTFUL)
        numbers, gaps, rests = low.view(-1), step.view(-1), past.view(-1)
        for first in range(0, len(numbers), STRIP):
            strip = slice(first, first + STRIP)
            self._around(numbers[strip], gaps[strip], rests[strip], space)
        if self.scales:
            self.scales.multiply(step, start)
            self.scales.multiply(past, start)
        return Bracket(low, step, past)

    def _around(self, low: torch.Tensor, step: torch.Tensor, past: torch.Tensor, space: Space) -> None:
        """`low` holds the numbers. Every step is exact: they divide by powers of two, and numbers with fewer bits than float32 has."""
        format, excess = torch.finfo(self.dtype), None
        if not bool(torch.abs(low, out=step).amax() <= format.max):
            inside = low.clamp(-format.max, format.max)
            excess = low - inside
            low.copy_(torch.where(step <= LAST[self.dtype], inside, torch.nan))
            torch.abs(low, out=step)
        step.clamp_min_(format.smallest_normal).view(torch.int32).bitwise_and_(EXPONENT)
        torch.div(low, step.mul_(format.eps), out=past)
        torch.floor(past, out=low)
        between = torch.ceil(past.sub_(low), out=space.block("between", past.shape))
        low.mul_(step)
        past.mul_(step)
        step.mul_(between)
        if excess is not None:
            past.add_(excess)
