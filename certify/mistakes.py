"""What usually goes wrong with a tensor that is more than W + Δ: the same recipe with one mistake in it, each tried in full.

As in `certify.suspects`, a cause is a label for the reader: nothing passes because its cause is known.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from certify.expect.expectation import Expectation, Part, Region
from certify.expect.target import Target
from certify.inputs.stored import Stored

EXPLAINED = 0.98  # of all elements
UNDETERMINED = "undetermined"


def mistaken(expectation: Expectation, merged: Stored, criterion: str) -> str:
    """The first mistake that explains the stored tensor. Raises DamagedError where a file ends early."""
    for cause, recipe in _mistakes(expectation):
        target = Target(recipe, criterion)
        held = total = 0
        for block, theirs, grid in target.against(merged):
            right = block.bound(grid, criterion).holds(theirs.double())
            held, total = held + int(right.sum()), total + right.numel()
        if held >= EXPLAINED * total:
            return cause
    return UNDETERMINED


def _mistakes(e: Expectation) -> Iterator[tuple[str, Expectation]]:
    if e.regions or e.tokens or e.magnitude:
        yield "never merged", replace(e, regions=(), magnitude=None, tokens=(), token_rows=None)
    if e.magnitude:
        yield "the magnitude was dropped: W + Δ is stored", replace(e, magnitude=None)
        if e.rows == e.columns:
            yield "the magnitude along the other axis", replace(e, along="rows" if e.along == "columns" else "columns")
    if e.tokens:
        yield "token rows one too low", replace(e, tokens=tuple(row - 1 for row in e.tokens))
        yield "token rows one too high", replace(e, tokens=tuple(row + 1 for row in e.tokens))
    yield from _other_deltas(e)


def _other_deltas(e: Expectation) -> Iterator[tuple[str, Expectation]]:
    """Every delta with the same mistake."""

    for name, factor in (("merged twice", 2.0), ("wrong sign", -1.0), ("half of the delta", 0.5)):
        yield name, replace(e, regions=_with(e, partial(_scaled, factor)))
    if any(part.cut and part.cut.experts > 1 for region in e.regions for part in region.parts):
        yield "the columns of B in the other order of experts and ranks", replace(e, regions=_with(e, _other_order))
        yield "the experts in reverse", replace(e, regions=_with(e, _reversed))
    numbers = {len(region.parts) for region in e.regions}
    for number in range(max(numbers, default=0) if numbers != {1} else 0):
        kept = tuple(replace(r, parts=r.parts[number : number + 1]) for r in e.regions)
        yield f"only adapter {number + 1} was merged", replace(e, regions=kept)


def _with(e: Expectation, change: Callable[[Part], Part]) -> tuple[Region, ...]:
    return tuple(replace(region, parts=tuple(map(change, region.parts))) for region in e.regions)


def _scaled(factor: float, part: Part) -> Part:
    return replace(part, scaling=part.scaling * factor)


def _other_order(part: Part) -> Part:
    return replace(part, cut=replace(part.cut, grouped=not part.cut.grouped)) if part.cut else part


def _reversed(part: Part) -> Part:
    return replace(part, cut=replace(part.cut, expert=part.cut.experts - 1 - part.cut.expert)) if part.cut else part
