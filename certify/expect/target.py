"""An expectation as numbers, block of rows by block of rows: memory is a block and the thin factors, never a tensor."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from certify.bounds import Bound, Delta, Gain, bound, reach
from certify.expect.expectation import Expectation, Region, factors
from certify.grid import Grid
from certify.inputs.stored import Stored

BLOCK = 1 << 19  # elements per block; its float64 twin has 4 MiB


@dataclass(frozen=True, slots=True)
class Block:
    """Rows row … row + n of a tensor: gain ∘ (base + Σ deltas). base (n, columns) as it is stored, or decoded, float32."""

    row: int
    base: Tensor
    deltas: tuple[Delta, ...]
    gain: Gain | None = None
    decoded: bool = False

    def delta(self) -> Tensor:
        """Σ deltas, float32."""
        if len(self.deltas) == 1:
            return self.deltas[0].value()
        return torch.stack([delta.value() for delta in self.deltas]).sum(0) if self.deltas else torch.zeros(self.base.shape)

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """(what these rows were, what the adapter adds, the sum), float32: the sum is a merge of our own, one of the right ones."""
        before, delta = self.base.float(), self.delta()
        own = before + delta
        if self.gain is None:
            return before, delta, own
        own = (own * self.gain.value).float()
        return before, own - before, own

    def own(self) -> Tensor:
        """A float32 merge of our own, unrounded."""
        return self.parts()[2]

    def bound(self, grid: Grid, criterion: str) -> Bound:
        return bound(self.base, self.deltas, grid, criterion, self.gain, decoded=self.decoded)

    def of(self, rows: Tensor) -> "Block":
        """Some of the rows (numbers within the block); `row` has no meaning then."""
        deltas = tuple(replace(delta, left=delta.left[rows]) for delta in self.deltas)
        gain = self.gain
        if gain is not None and len(gain.value) > 1:
            gain = Gain(gain.value[rows], gain.error[rows])
        return Block(0, self.base[rows], deltas, gain, self.decoded)


class Target:
    """One expectation, ready to be computed. Raises DamagedError where a file ends early."""

    def __init__(self, expectation: Expectation, criterion: str) -> None:
        self.expectation, self._criterion, self._decoded = expectation, criterion, expectation.start.decoded
        self._magnitude = expectation.magnitude.load().double().reshape(-1) if expectation.magnitude else None
        self._rows = expectation.token_rows.load() if expectation.token_rows else None
        self._places = {row: place for place, row in enumerate(expectation.tokens)}
        self._loaded: tuple[Region | None, tuple[Delta, ...]] = None, ()
        self._along_columns = self._columns_gain() if self._magnitude is not None and expectation.along == "columns" else None

    def spans(self) -> list[tuple[int, int]]:
        """(first row, rows) of every block, in order."""
        height = max(1, BLOCK // max(1, self.expectation.columns))
        edges = sorted({0, self.expectation.rows, *(row for region in self.expectation.regions for row in (region.first, region.last))})
        return [(row, min(height, last - row)) for first, last in pairwise(edges) for row in range(first, last, height)]

    def counts(self) -> list[int]:
        """Elements of every block."""
        return [rows * self.expectation.columns for _, rows in self.spans()]

    def blocks(self) -> Iterator[Block]:
        """The whole tensor."""
        starts = self.expectation.start.spans(self.counts())
        for (row, height), base in zip(self.spans(), starts, strict=True):
            yield self._block(row, base.view(height, self.expectation.columns))

    def against(self, merged: Stored) -> Iterator[tuple[Block, Tensor, Grid]]:
        """(what is expected of some rows, these rows of the merged tensor, what can stand there)."""
        for block, theirs in zip(self.blocks(), merged.spans(self.counts()), strict=True):
            rows = range(block.row, block.row + len(block.base))
            yield block, theirs.view(block.base.shape), merged.grid(rows)

    def _block(self, row: int, base: Tensor) -> Block:
        base, deltas = self._replaced(row, base), self._deltas(row, len(base))
        gain = self._along_columns
        if gain is None and self._magnitude is not None:
            v, e = reach(base, [delta.double() for delta in deltas], self._criterion, decoded=self._decoded)
            squares, errors = v.square().sum(1, keepdim=True), e.square().sum(1, keepdim=True)
            gain = Gain.of(self._magnitude[row : row + len(base), None], squares, errors, base.shape[1])
        return Block(row, base, deltas, gain, self._decoded)

    def _replaced(self, row: int, base: Tensor) -> Tensor:
        """The block with the adapter's rows in it."""
        here = [number for number in self._places if row <= number < row + len(base)]
        if not here or self._rows is None:
            return base
        base = base.float()
        base[torch.tensor(here) - row] = self._rows[[self._places[number] for number in here]].float()
        return base

    def _deltas(self, row: int, count: int) -> tuple[Delta, ...]:
        region = next((region for region in self.expectation.regions if region.first <= row < region.last), None)
        if region is None:
            return ()
        if self._loaded[0] is not region:
            self._loaded = region, tuple(factors(part) for part in region.parts)
        first = row - region.first
        return tuple(replace(delta, left=delta.left[first : first + count]) for delta in self._loaded[1])

    def _columns_gain(self) -> Gain:
        """The first of two passes: the norms of whole columns."""
        assert self._magnitude is not None
        squares, errors = (torch.zeros(1, self.expectation.columns, dtype=torch.float64) for _ in range(2))
        self._along_columns = None
        starts = self.expectation.start.spans(self.counts())
        for (row, height), base in zip(self.spans(), starts, strict=True):
            deltas = self._deltas(row, height)
            v, e = reach(base.view(height, -1), [delta.double() for delta in deltas], self._criterion, decoded=self._decoded)
            squares += v.square().sum(0)
            errors += e.square().sum(0)
        return Gain.of(self._magnitude[None, :], squares, errors, self.expectation.rows)
