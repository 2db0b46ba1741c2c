"""One slab made ready to be written: rounded by the chosen rule, encoded, held against what it should be. Memory is the caller's."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from merge.encodings import Grid
from merge.fidelity import Sums, folded, measure
from merge.rounding import ROUNDS, Ascent, Bracket, Floats, Space, draws, stochastic
from merge.subspace import Aim

STRIP = 1 << 18  # elements worked on at a time: in half as many small products cost more than what the caches save


@dataclass(frozen=True, slots=True)
class Rule:
    """How a merged weight is rounded. rounds  of faithful, at most      seed  of stochastic"""

    name: str = "nearest"
    rounds: int = ROUNDS
    seed: int = 0


def store(
    exact: torch.Tensor, grid: Grid, out: torch.Tensor, start: int, name: str, aims: tuple[Aim, ...], rule: Rule, space: Space
) -> Sums | None:
    """Round and encode; None if a number has no place in the output's dtype.

    exact  (n, columns)  float32: rows start … of the weight `name`, after every step; overwritten where the grid has scales
    out    (n, columns)  the output's dtype, overwritten
    """
    slab, found = _Slab(exact, grid, out, start, name, rule, space), []
    aimed = [aim.rows for aim in aims]
    for first, last in itertools.pairwise([0, *(end for rows in aimed for end in (rows.start, rows.stop)), len(exact)]):
        if first < last and slice(first, last) not in aimed and not slab.plainly(slice(first, last)):
            return None
    for aim in aims:
        sums = slab.towards(aim)
        if sums is None:
            return None
        found.append(sums)
    return folded(found)


@dataclass(frozen=True, slots=True)
class _Slab:
    """What `store` was given. Strips of it are rounded and measured while they are in a core's cache."""

    exact: torch.Tensor
    grid: Grid
    out: torch.Tensor
    start: int
    name: str
    rule: Rule
    space: Space

    def plainly(self, rows: slice) -> bool:
        """Rows that nothing aims at: to the nearest. False if a number has no place."""
        strips = (slice(rows.start + part.start, rows.start + part.stop) for part in _strips(rows.stop - rows.start, self.exact.shape[1]))
        return all(self.grid.encode(self.exact[strip], self.out[strip], self.start + strip.start) for strip in strips)

    def towards(self, aim: Aim) -> Sums | None:
        """The rows of one aim by the chosen rule, and what is kept of it; None if a number has no place."""
        inside, noise, ascent = torch.empty_like(aim.wanted), 0.0, Ascent(self.rule.rounds, self.space)
        for part, rows in _parts(aim, self.exact):
            exact, out, first = self.exact[rows], self.out[rows], self.start + rows.start
            if self.grid.scales:
                self.grid.scales.divide(exact, first)
            if not self.grid.encoding.encode(self._rounded(exact, aim, part, first, ascent), out):
                return None
            error = self.space.block("low", exact.shape)
            self.grid.encoding.decode(out, error)
            error.sub_(exact)
            if self.grid.scales:
                self.grid.scales.multiply(error, first)
            noise += float(torch.linalg.vector_norm(error)) ** 2
            inside[part] = aim.span.of(part).project(error if aim.whole else error.T)
        return measure(inside, aim.wanted, noise, ascent.above)

    def _rounded(self, exact: torch.Tensor, aim: Aim, part: slice, first: int, ascent: Ascent) -> torch.Tensor:
        """What is to be encoded, in units of the scale: the sums are codes but for the last bits, and will be rounded to them."""
        if self.rule.name == "nearest":
            return exact
        around = Floats(self.out.dtype, self.grid.scales).bracket(exact, first, self.space)
        if self.rule.name == "faithful":
            up = _chosen(around, aim, part, ascent)
        else:
            drawn = draws(self.rule.seed, self.name, first * exact.shape[1], exact.numel()).view(exact.shape)
            up = stochastic(around.past, around.step, drawn)
        if self.grid.scales:
            self.grid.scales.divide(around.step, first)
        return around.low.addcmul_(up, around.step)


def _chosen(around: Bracket, aim: Aim, part: slice, ascent: Ascent) -> torch.Tensor:
    """1 where the upper neighbour is chosen. Columns that must stay whole are copied to rows, a few at a time."""
    if aim.whole:
        return ascent.choose(around.past, around.step, aim.span.of(part), aim.wanted[part])
    for columns in _strips(*around.past.T.shape):
        past, step = (
            ascent.space.block(name, turned.shape).copy_(turned)
            for name, turned in (("turned past", around.past.T[columns]), ("turned step", around.step.T[columns]))
        )
        around.past.T[columns] = ascent.choose(past, step, aim.span.of(columns), aim.wanted[columns])
    return around.past


def _parts(aim: Aim, exact: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """(vectors of the aim, rows of the slab) that are worked on together: strips, or all of it where columns are whole."""
    high, wide = aim.rows.stop - aim.rows.start, exact.shape[1]
    for part in _strips(high, wide) if aim.whole else (slice(0, high),):
        yield part if aim.whole else slice(None), slice(aim.rows.start + part.start, aim.rows.start + part.stop)


def _strips(vectors: int, length: int) -> Iterator[slice]:
    """As few as there can be, and about as high as each other."""
    count = max(1, min(vectors, -(-vectors * length // STRIP)))
    for number in range(count):
        yield slice(number * vectors // count, (number + 1) * vectors // count)
