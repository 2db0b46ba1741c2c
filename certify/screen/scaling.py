"""The scaling of an adapter whose configuration is lost: between which two values s lies if merged is base + s·B·A, rounded once.

Every element says   low − e ≤ W + s·(BA) ≤ high + e,   [low, high] what rounds to the stored value, e = e₀ + |s|·k what float32 may miss
(certify/bounds.py: e₀ the part of W, k the part of B·A). For each sign of s these are linear inequalities, and all elements of a matrix
bracket s to about 1e-5. An interval without a point proves that the tensor is no such merge. Least squares is not asked: what rounding
swallowed would look like a smaller s.

α/r or α/√r: whichever makes α a whole number, the same at all ranks. Where both do, only the name is open; the merge is the same.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.bounds import SPARE, TINY, U32, Delta, bound
from certify.checks.c4_merged import blocks, rows_of
from certify.coefficient import coefficient
from certify.grid import Grid
from certify.inputs.stored import Stored

STRIP = 1 << 15  # elements; of each that is asked, a row of both factors is in memory
SHARP = 0.1  # width of an interval of α above which a whole number inside says nothing


@dataclass(frozen=True, slots=True)
class Fit:
    """What one tensor says about s. low > high: no s explains every element; `share` of the telling ones agree on about `nearest`.

    rank   of the module's adapter       nearest, share   None where low ≤ high, or nothing can be told
    """

    name: str
    rank: int
    low: float
    high: float
    nearest: float | None = None
    share: float | None = None

    @property
    def empty(self) -> bool:
        return self.low > self.high

    @property
    def silent(self) -> bool:
        """s = 0 is among the answers: nothing was merged, or nothing that the grid shows."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors that one scaling explains."""

    low: float
    high: float
    fits: tuple[Fit, ...]


def fit(name: str, base: Stored, merged: Stored, factors: Delta) -> Fit:
    """factors: left, right as the tensor is stored; their scaling is not read. Raises DamagedError where a file ends early."""
    plain = Delta(factors.left, factors.right, 1.0, factors.dtype)
    sides = [_Side(1.0), _Side(-1.0)]
    for row, ours, theirs in _strips(base, merged):
        delta = rows_of(plain, row, len(ours))
        rows, columns = _telling(ours, theirs, delta, sides)
        one = Delta(delta.left[rows], delta.right[:, columns], 1.0, delta.dtype).double()
        sides = [side for side in sides if side.narrow(ours[rows, columns].double(), theirs[rows, columns], one)]
        if not sides:
            return Fit(name, plain.rank, math.inf, -math.inf, *_nearest(base, merged, plain))
    found = [side.interval() for side in sides]
    return Fit(name, plain.rank, min(low for low, _ in found), max(high for _, high in found))


@dataclass
class _Side:
    """The answers of one sign, as |s| between low and high."""

    sign: float
    low: float = 0.0
    high: float = math.inf

    def narrow(self, W: Tensor, merged: Tensor, delta: Delta) -> bool:
        """Some elements: |s|·p ≥ q, twice each. Whether an answer is left.

        W, merged (n,)      delta: left (n, rank), right (rank, n), the factors of each element
        """
        grid = Grid(merged.dtype)
        least, most = grid.between(merged, -torch.inf) - W, grid.between(merged, torch.inf) - W
        along = (delta.left * delta.right.T).sum(dim=1) * self.sign
        reach = delta.left.norm(dim=1) * delta.right.norm(dim=0) * ((delta.rank + SPARE) * U32) + (delta.rank + 8) * TINY
        room = W.abs() * ((delta.rank + SPARE) * U32) + (delta.rank + 8) * TINY
        for p, q in ((reach + along, least - room), (reach - along, -(most + room))):
            at = q / p
            above, below = at[p > 0], at[p < 0]
            self.low = max(self.low, float(above.max())) if len(above) else self.low
            self.high = min(self.high, float(below.min())) if len(below) else self.high
            if bool(((p == 0) & (q > 0)).any()) or not bool(torch.isfinite(merged).all()):
                self.high = -math.inf
        return self.low <= self.high

    def interval(self) -> tuple[float, float]:
        """As values of s."""
        return (self.low, self.high) if self.sign > 0 else (-self.high, -self.low)


def _strips(base: Stored, merged: Stored) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The blocks of C4 in strips of STRIP elements: already the first one narrows the interval for the others."""
    for row, ours, theirs in blocks(base, merged):
        height = max(1, STRIP // max(1, ours.shape[1]))
        for first in range(0, len(ours), height):
            yield row + first, ours[first : first + height], theirs[first : first + height]


def _telling(base: Tensor, merged: Tensor, delta: Delta, sides: Sequence[_Side]) -> tuple[Tensor, Tensor]:
    """(rows, columns) of the elements of a strip that may narrow an interval: those that an end of one does not explain in float32."""
    asked = torch.full(base.shape, not all(math.isfinite(side.high) for side in sides))
    if not bool(asked.any()):
        W, value = base.float(), delta.value()
        for end in (end for side in sides for end in side.interval()):
            asked |= torch.add(W, value, alpha=end).to(merged.dtype) != merged
    rows, columns = asked.nonzero(as_tuple=True)
    return rows, columns


def _nearest(base: Stored, merged: Stored, plain: Delta) -> tuple[float | None, float | None]:
    """(the scaling that most telling elements of the first block agree on, their share)."""
    _, ours, theirs = next(blocks(base, merged))
    delta = rows_of(plain, 0, len(ours))
    grid = Grid(theirs.dtype)
    found = coefficient(theirs, ours, bound(ours, [delta], grid, "nearest"), grid)
    return (None, None) if found is None else ((found.low + found.high) / 2, found.share)


def groups(fits: Sequence[Fit]) -> list[Group]:
    """The fewest scalings that explain all tensors that say something."""
    found: list[Group] = []
    for one in sorted((f for f in fits if not f.empty and not f.silent), key=lambda f: f.high):
        last = found[-1] if found else None
        if last is not None and one.low <= last.high:
            found[-1] = Group(max(last.low, one.low), last.high, (*last.fits, one))
        else:
            found.append(Group(one.low, one.high, (one,)))
    return found


def reading(fits: Sequence[Fit]) -> str:
    """How α and r make the scaling of these tensors: α/r, α/√r, or both."""
    found, wide = [], False
    for formula, power in (("α/r", 1.0), ("α/√r", 0.5)):
        low, high = max(f.low * f.rank**power for f in fits), min(f.high * f.rank**power for f in fits)
        whole = round((low + high) / 2) if low <= high else 0
        wide |= high - low >= SHARP
        if whole > 0 and low <= whole <= high and high - low < SHARP:
            found.append(f"{formula} with α = {whole}")
    if len(found) == 2:
        return f"{found[0]}, or {found[1]}: the merge is the same"
    if found:
        return found[0]
    if wide:
        return "too wide to tell α"
    return "no whole α makes it, neither as α/r nor as α/√r: a weight on top, or a fractional α"
