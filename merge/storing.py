"""One slab made ready to be written: rounded by the chosen rule, encoded, held against what it should be. Memory is the caller's."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from merge.encodings import BlockScales, Grid
from merge.fidelity import Sums, folded, measure
from merge.rounding import ROUNDS, Ascent, Bracket, Floats, Space, draws, stochastic
from merge.subspace import Aim

STRIP = 1 << 18  # elements worked on at a time: in half as many small products cost more than what the caches save
WIDER = 2  # times as many under nearest, which has fewer blocks beside them: else two threads wait for each other between short steps


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
        strips = (
            slice(rows.start + part.start, rows.start + part.stop)
            for part in _strips(rows.stop - rows.start, self.exact.shape[1], self.rule)
        )
        return all(self.grid.encode(self.exact[strip], self.out[strip], self.start + strip.start) for strip in strips)

    def towards(self, aim: Aim) -> Sums | None:
        """The rows of one aim by the chosen rule, and what is kept of it; None if a number has no place."""
        inside, noise, ascent = torch.empty_like(aim.wanted), 0.0, Ascent(self.rule.rounds, self.space)
        for piece in self._pieces(aim):
            exact, stored, first = piece.exact, piece.stored, self.start + piece.rows.start
            if piece.scales:
                piece.scales.divide(exact, first)
            if not self.grid.encoding.encode(self._rounded(piece, aim, first, ascent), stored):
                return None
            error = self.space.block("low", exact.shape)
            self.grid.encoding.decode(stored, error)
            error.sub_(exact)
            if piece.scales:
                piece.scales.multiply(error, first)
            noise += float(torch.linalg.vector_norm(error)) ** 2
            inside[piece.vectors] = aim.span.of(piece.vectors).project(error if aim.whole else error.T)
            if not aim.whole:
                self.out[piece.rows, piece.vectors].copy_(stored)
        return measure(inside, aim.wanted, noise, ascent.above)

    def _pieces(self, aim: Aim) -> Iterator["_Piece"]:
        """Strips of the vectors that an aim must keep whole: rows as they lie, or columns of whole blocks, copied side by side."""
        rows, (high, wide), scales = aim.rows, self.exact[aim.rows].shape, self.grid.scales
        if aim.whole:
            for part in _strips(high, wide, self.rule):
                here = slice(rows.start + part.start, rows.start + part.stop)
                yield _Piece(self.exact[here], self.out[here], scales, here, part)
            return
        width = scales.width if scales and scales.values.shape[1] > 1 else 1
        for part in _strips(-(-wide // width), high * width, self.rule):
            columns = slice(part.start * width, min(part.stop * width, wide))
            exact = self.exact[rows, columns]
            copied = self.space.block("piece", exact.shape).copy_(exact)
            if scales and width > 1:
                within = torch.zeros(scales.values.shape[1], dtype=torch.bool)
                within[part] = True
                yield _Piece(copied, torch.empty(exact.shape, dtype=self.out.dtype), scales.across(within), rows, columns)
            else:
                yield _Piece(copied, torch.empty(exact.shape, dtype=self.out.dtype), scales, rows, columns)

    def _rounded(self, piece: "_Piece", aim: Aim, first: int, ascent: Ascent) -> torch.Tensor:
        """What is to be encoded, in units of the scale: the sums are codes but for the last bits, and will be rounded to them."""
        exact = piece.exact
        if self.rule.name == "nearest":
            return exact
        around = Floats(self.out.dtype, piece.scales).bracket(exact, first, self.space)
        if self.rule.name == "faithful":
            up = self._chosen(around, aim, piece.vectors, ascent)
        else:
            drawn = draws(self.rule.seed, self.name, first * exact.shape[1], exact.numel()).view(exact.shape)
            up = stochastic(around.past, around.step, drawn)
        if piece.scales:
            piece.scales.divide(around.step, first)
        return around.low.addcmul_(up, around.step)

    def _chosen(self, around: Bracket, aim: Aim, vectors: slice, ascent: Ascent) -> torch.Tensor:
        """1 where the upper neighbour is chosen."""
        past, step = around.past, around.step
        if not aim.whole:
            past, step = (self.space.block(name, b.T.shape).copy_(b.T) for name, b in (("turned past", past), ("turned step", step)))
        up = ascent.choose(past, step, aim.span.of(vectors), aim.wanted[vectors])
        return up if aim.whole else around.past.copy_(up.T)


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is worked on together: numbers, where their codes go, and the scales of both. rows, vectors  of the slab, and of the aim"""

    exact: torch.Tensor
    stored: torch.Tensor
    scales: BlockScales | None
    rows: slice
    vectors: slice


def _strips(vectors: int, length: int, rule: Rule) -> Iterator[slice]:
    """As few as there can be, and about as high as each other."""
    size = STRIP * (WIDER if rule.name == "nearest" else 1)
    count = max(1, min(vectors, -(-vectors * length // size)))
    for number in range(count):
        yield slice(number * vectors // count, (number + 1) * vectors // count)
