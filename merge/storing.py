"""One slab made ready to be written: rounded by the chosen rule, encoded, held against what it should be. Memory is the caller's."""

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

    exact  (n, columns)  float32: rows start … of the weight `name`, after every step
    out    (n, columns)  the output's dtype, overwritten
    """
    above = 0.0
    if rule.name == "stochastic":
        fits = _by_chance(exact, grid, out, start, name, rule.seed, space)
    elif rule.name == "nearest":
        fits = _nearest(exact, grid, out, start, space)
    else:
        aimed = sum(aim.rows.stop - aim.rows.start for aim in aims)
        fits = aimed == len(exact) or _nearest(exact, grid, out, start, space)  # rows that nothing aims at
        for aim in aims:
            ascent = Ascent(rule.rounds, space)
            fits = fits and _faithfully(exact, grid, out, start, aim, ascent)
            above += ascent.above
    return folded([Sums(above=above), *(_measured(exact, grid, out, start, aim, space) for aim in aims)]) if fits else None


def _nearest(exact: torch.Tensor, grid: Grid, out: torch.Tensor, start: int, space: Space) -> bool:
    if grid.scales is None:  # nothing is overwritten, so that nothing is copied
        return grid.encode(exact, out, start)
    return all(
        grid.encode(space.block("low", exact[rows].shape).copy_(exact[rows]), out[rows], start + rows.start)
        for rows in _strips(*exact.shape)
    )


def _by_chance(exact: torch.Tensor, grid: Grid, out: torch.Tensor, start: int, name: str, seed: int, space: Space) -> bool:
    floats, fits = Floats(out.dtype, grid.scales), True
    for rows in _strips(*exact.shape):
        around = floats.bracket(exact[rows], start + rows.start, space)
        drawn = draws(seed, name, (start + rows.start) * exact.shape[1], around.low.numel()).view(around.low.shape)
        fits &= _encoded(around, stochastic(around.past, around.step, drawn), grid, out[rows], start + rows.start)
    return fits


def _encoded(around: Bracket, up: torch.Tensor, grid: Grid, out: torch.Tensor, start: int) -> bool:
    """The chosen neighbours as they are stored: the sums are codes but for the last bits, and are rounded to them."""
    if grid.scales:
        grid.scales.divide(around.step, start)
    return grid.encoding.encode(around.low.addcmul_(up, around.step), out)


def _faithfully(exact: torch.Tensor, grid: Grid, out: torch.Tensor, start: int, aim: Aim, ascent: Ascent) -> bool:
    floats, fits = Floats(out.dtype, grid.scales), True
    for part, rows in _parts(aim, exact):
        first = start + rows.start
        around = floats.bracket(exact[rows], first, ascent.space)
        fits &= _encoded(around, _chosen(around, aim, part, ascent), grid, out[rows], first)
    return fits


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


def _measured(exact: torch.Tensor, grid: Grid, out: torch.Tensor, start: int, aim: Aim, space: Space) -> Sums:
    """What is stored, decoded again, less what it should be: strip by strip where rows are whole."""
    inside, noise = torch.empty_like(aim.wanted), 0.0
    for part, rows in _parts(aim, exact):
        error = space.block("low", exact[rows].shape)
        grid.decode(out[rows], error, start + rows.start)
        error.sub_(exact[rows])
        noise += float(torch.linalg.vector_norm(error)) ** 2
        inside[part] = aim.span.of(part).project(error if aim.whole else error.T)
    return measure(inside, aim.wanted, noise)


def _strips(vectors: int, length: int) -> Iterator[slice]:
    """As few as there can be, and about as high as each other."""
    count = max(1, min(vectors, -(-vectors * length // STRIP)))
    for number in range(count):
        yield slice(number * vectors // count, (number + 1) * vectors // count)
