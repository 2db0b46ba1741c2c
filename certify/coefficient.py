"""How much of Δ a stored tensor holds, by intervals: each element says between which two coefficients c it is a rounding of W + c·Δ.

Least squares would not do: rounding swallows small deltas, and a right merge that keeps half of its delta would look half merged. The
intervals of a once-rounded W + c·Δ have a common point, which brackets c to 1e-4 or better; where they have none, the point that most of
them share is taken, and their share is told.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from certify.bounds import Bound
from certify.grid import Grid

TELLING = 1 << 16  # elements asked: those whose Δ is largest against their grid


@dataclass(frozen=True, slots=True)
class Coefficient:
    """low ≤ c ≤ high; share: how many of the telling elements agree."""

    low: float
    high: float
    share: float

    def admits(self, value: float, room: float = 1e-3) -> bool:
        """Whether c may be `value`: inside, or beside by 0.1 % (the slack of float32 arithmetic is not in the intervals)."""
        return self.low - room * abs(value) <= value <= self.high + room * abs(value)


def coefficient(merged: Tensor, base: Tensor, declared: Bound, grid: Grid) -> Coefficient | None:
    """merged, base (rows, columns) as stored; declared: the bound of W + Δ; grid: of merged. None where Δ is zero, or nothing is finite."""
    W, M = base.double(), merged.double()
    delta = declared.exact - W
    low = (grid.between(merged, -torch.inf) - W - declared.slack).view(-1)
    high = (grid.between(merged, torch.inf) - W + declared.slack).view(-1)
    weight = (delta.abs() / grid.half_step(declared.exact)).view(-1)
    weight[~torch.isfinite(M).view(-1) | ~torch.isfinite(weight)] = 0
    chosen = weight.topk(min(TELLING, weight.numel())).indices
    chosen = chosen[weight[chosen] > 0]
    if not len(chosen):
        return None
    one, two = low[chosen] / delta.view(-1)[chosen], high[chosen] / delta.view(-1)[chosen]
    starts, ends = torch.minimum(one, two).sort().values, torch.maximum(one, two).sort().values
    passed = torch.searchsorted(ends, starts)  # how many intervals ended before each start
    depth = torch.arange(1, len(starts) + 1) - passed
    best = int(depth.argmax())
    return Coefficient(float(starts[best]), float(ends[passed[best]]), int(depth[best]) / len(starts))
