"""What one operation's rounding must keep: for each run of rows, the inputs that its adapters answer to and how Δ looks in them.

A layer's input meets the columns of a weight stored (out, in): there each row is a whole, and Q spans the rows of every A. It meets the
rows of one stored (in, out), as Conv1D and some stacks of experts do: there each column is a whole, and Q is as long as a column.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from merge.arithmetic import Applied, Delta
from merge.rounding.span import Span, basis


@dataclass(frozen=True, slots=True)
class Region:
    """Rows of a stored weight that the same adapters' products change.

    rows    (first, last) of the stored weight
    whole   1: every row is one vector; 0: every column of the region is
    span    k directions as long as such a vector: Q
    wanted  (number of such vectors, k)   float32: Δ·Q, which is all of Δ where it is a sum of products
    exact   False where Δ is more than that (DoRA, single rows, a bias): then it must be measured, see `Aim`
    """

    rows: tuple[int, int]
    whole: int
    span: Span
    wanted: torch.Tensor
    exact: bool


@dataclass(frozen=True, slots=True)
class Aim:
    """The share of a region in one slab. rows  of the slab; wanted  (vectors, coordinates of the span)"""

    rows: slice
    whole: int
    span: Span
    wanted: torch.Tensor

    def vectors(self, slab: torch.Tensor) -> torch.Tensor:
        """The vectors that must stay whole, as rows: a view. slab  (n, columns)"""
        return slab[self.rows] if self.whole else slab[self.rows].T


def regions(steps: tuple[Applied, ...], shape: tuple[int, int], whole: int) -> tuple[Region, ...]:
    """Every region of a weight, in order; rows that nothing changes belong to none.

    shape  (rows, columns) of the stored weight, as the steps count them
    """
    deltas = [step for step in steps if isinstance(step, Delta)]
    exact = len(deltas) == len(steps)
    cuts = {0, shape[0], *(d.at for d in deltas), *(d.at + len(d.left) for d in deltas)}
    found = []
    for first, last in itertools.pairwise(sorted(cuts)):
        here = [d for d in deltas if d.at <= first and last <= d.at + len(d.left)]
        if here or not exact:
            found.append(_region(here, (first, last), shape[1], whole, exact))
    return tuple(found)


def _region(deltas: list[Delta], rows: tuple[int, int], columns: int, whole: int, exact: bool) -> Region:
    pairs = [(d.left[rows[0] - d.at : rows[1] - d.at], d.right, d.scaling) for d in deltas]
    if not whole:
        pairs = [(right.T, left.T, scaling) for left, right, scaling in pairs]
    vectors, length = (rows[1] - rows[0], columns) if whole else (columns, rows[1] - rows[0])
    if not pairs:
        return Region(rows, whole, Span.of_columns(torch.zeros(length, 0)), torch.zeros(vectors, 0), exact)
    Q, coordinates = basis(torch.cat([right for _, right, _ in pairs]))
    wanted, ranks = torch.zeros(vectors, Q.shape[1]), [len(right) for _, right, _ in pairs]
    for (left, _, scaling), own in zip(pairs, torch.split(coordinates, ranks), strict=True):
        wanted.addmm_(left, own, alpha=scaling)
    return Region(rows, whole, Span.of_columns(Q), wanted, exact)


def aims(regions: tuple[Region, ...], start: int, exact: torch.Tensor, before: torch.Tensor | None) -> Iterator[Aim]:
    """What lies in rows start … of the weight.

    exact, before  (n, columns)  float32, after every step and before any; `before` is needed where a region is not exact
    """
    for region in regions:
        first, last = max(region.rows[0], start), min(region.rows[1], start + len(exact))
        if first >= last:
            continue
        rows = slice(first - start, last - start)
        own = slice(first - region.rows[0], last - region.rows[0])
        assert region.whole or (first, last) == region.rows, "the plan keeps columns whole"
        if region.exact:
            yield Aim(rows, region.whole, region.span, region.wanted[own] if region.whole else region.wanted)
        else:
            assert before is not None, "Δ is measured"
            aim = Aim(rows, region.whole, region.span, region.wanted)
            span, wanted = region.span.completed(aim.vectors(exact) - aim.vectors(before))
            yield Aim(rows, region.whole, span, wanted)
