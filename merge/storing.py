"""One slab made ready to be written: rounded by the chosen rule, encoded, held against what it should be. Memory is the caller's."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from merge.encodings import Grid
from merge.fidelity import Sums, folded, measure
from merge.rounding import ROUNDS, Floats, Space, draws, faithful, stochastic
from merge.subspace import Aim

STRIP = 1 << 17  # elements worked on at a time: with six blocks beside it that is a core's second cache, and rows enough for a product


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

    exact  (n, columns)  float32: rows start … of the weight `name`, after every step
    out    (n, columns)  the output's dtype, overwritten
    """
    rounded, above = exact, 0.0
    if rule.name != "nearest" or grid.scales:  # elsewhere nothing is overwritten, so that nothing is copied
        rounded = space.block("chosen", tuple(exact.shape)).copy_(exact)
    if rule.name == "stochastic":
        _by_chance(exact, rounded, Floats(out.dtype, grid.scales), start, name, rule.seed, space)
    elif rule.name == "faithful":
        above = sum(_faithfully(exact, rounded, Floats(out.dtype, grid.scales), start, aim, rule.rounds, space) for aim in aims)
    if not grid.encode(rounded, out, start):
        return None
    return folded([Sums(above=above), *(_measured(exact, grid, out, start, aim, space) for aim in aims)])


def _measured(exact: torch.Tensor, grid: Grid, out: torch.Tensor, start: int, aim: Aim, space: Space) -> Sums:
    """What is stored, decoded again, less what it should be: strip by strip where rows are whole."""
    inside, noise = torch.empty_like(aim.wanted), 0.0
    high, wide = exact[aim.rows].shape
    for part in _strips(high, wide) if aim.whole else (slice(0, high),):
        rows = slice(aim.rows.start + part.start, aim.rows.start + part.stop)
        error = space.block("error", (part.stop - part.start, wide))
        grid.decode(out[rows], error, start + rows.start)
        error.sub_(exact[rows])
        noise += float(torch.linalg.vector_norm(error)) ** 2
        vectors = part if aim.whole else slice(None)
        inside[vectors] = aim.span.of(vectors).project(error if aim.whole else error.T)
    return measure(inside, aim.wanted, noise)


def _by_chance(exact: torch.Tensor, chosen: torch.Tensor, floats: Floats, start: int, name: str, seed: int, space: Space) -> None:
    columns = exact.shape[1]
    for rows in _strips(len(exact), columns):
        low, high = floats.bracket(exact[rows], start + rows.start, space)
        drawn = draws(seed, name, (start + rows.start) * columns, low.numel()).view(low.shape)
        chosen[rows] = stochastic(exact[rows], low, high, drawn)


def _faithfully(exact: torch.Tensor, chosen: torch.Tensor, floats: Floats, start: int, aim: Aim, rounds: int, space: Space) -> float:
    """The chosen numbers of one aim; the energy that their noise may have above the least."""
    first, above = start + aim.rows.start, 0.0
    vectors, result = aim.vectors(exact), aim.vectors(chosen)
    around = None if aim.whole else floats.bracket(exact[aim.rows], first, Space())  # columns: the grid's own order is by rows
    for part in _strips(*vectors.shape):
        if around is None:
            low, high = floats.bracket(vectors[part], first + part.start, space)
        else:
            low, high = (space.block(n, vectors[part].shape).copy_(b.T[part]) for n, b in zip(("low", "high"), around, strict=True))
        target = space.block("target", vectors[part].shape).copy_(vectors[part])
        above += faithful(target, low, high, aim.span.of(part), aim.wanted[part], rounds, space)
        result[part] = low
    return above


def _strips(vectors: int, length: int) -> Iterator[slice]:
    height = max(1, STRIP // length)
    for first in range(0, vectors, height):
        yield slice(first, min(first + height, vectors))
