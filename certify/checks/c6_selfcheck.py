"""C6: the gate itself. Its formula, its bound and PEFT's layer agree on small cases, and it sees faults that are planted in this very run.

A failure here says nothing about the checkpoint: the verdict is INCOMPLETE, because green would mean nothing.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import hypothesis.configuration
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from certify.bounds import Delta, bound
from certify.checks import c4_merged
from certify.errors import DamagedError
from certify.expect.expectation import Part, factors
from certify.expect.oracle import peft_merged, textbook, unmerged
from certify.expect.place import Orientation
from certify.expect.target import Block
from certify.expect.witness import hold_kinds
from certify.fidelity import Fidelity
from certify.finding import Figure, Finding, Outcome
from certify.grid import Grid
from certify.inputs.dtypes import FLOATS
from certify.inputs.stored import Stored

CODE = "C6"
TITLE = "the gate itself: formula, bound and PEFT agree, planted faults are seen"
FORMULA, POWER = "self-check: formula", "self-check: power"
SUBJECTS = (FORMULA, POWER)
EXAMPLES = 300
TENSORS = 3  # in which faults are planted: first, middle, last by name
ROWS, ELEMENTS = 64, 1 << 18  # of one tensor that are read for it, at most
TILE = 128  # columns of the planted tile
SETTINGS = settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False
)


@dataclass(frozen=True, slots=True)
class Toy:
    """A small module: weight as it is stored, and one delta; everything follows from the drawn numbers."""

    weight: Tensor
    delta: Delta
    orientation: Orientation

    def merged(self, delta: Delta) -> Tensor:
        """W + Δ in float32, rounded once."""
        return (self.weight.float() + delta.value()).to(self.weight.dtype)


def _toy(rows: int, columns: int, rank: int, scaling: float, size: float, dtype: torch.dtype, conv: bool, seed: int) -> Toy:
    chance = torch.Generator().manual_seed(seed)
    weight = torch.randn((rows, columns), generator=chance).mul_(0.05).to(dtype)
    left, right = (torch.randn(shape, generator=chance) * size for shape in ((rows, rank), (rank, columns)))
    return Toy(weight, Delta(left, right, scaling, torch.float32), "in,out" if conv else "out,in")


TOYS = st.builds(
    _toy,
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    rank=st.integers(1, 64),
    scaling=st.sampled_from((-2.0, -0.5, 0.25, 1.0, 16.0, 8 / 3, 2**0.5)),
    size=st.sampled_from((0.0, 1e-22, 1e-3, 0.05, 1.0)),  # 1e-22: products below the smallest normal float32
    dtype=st.sampled_from(tuple(FLOATS.values())),
    conv=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


@cache
def formula() -> Finding:
    """Hypothesis, by hand: its pytest plug-in is not needed. The examples are the same in every run, so that once per process is enough."""
    told, threads = "", torch.get_num_threads()
    torch.set_num_threads(1)  # on matrices this small, threads wait for each other longer than they work
    with tempfile.TemporaryDirectory(prefix="certify-") as room:  # hypothesis keeps notes in the working directory, which is not ours
        hypothesis.configuration.set_hypothesis_home_dir(room)
        try:
            SETTINGS(given(toy=TOYS)(agree))()
            hold_kinds()
        except Exception as error:
            told = f"the gate contradicts itself on a small case: {type(error).__name__}: {error}"
        finally:
            hypothesis.configuration.set_hypothesis_home_dir(None)
            torch.set_num_threads(threads)
    return Finding(CODE, FORMULA, Outcome.FAILED if told else Outcome.PASSED, told, {"hypothesis_examples": EXAMPLES})


def agree(toy: Toy) -> None:
    """Oracle = textbook = PEFT's layer on one small module. Raises AssertionError, with the contradiction as its text."""
    delta, W = toy.delta, toy.weight
    wide = W.double()
    x = torch.eye(len(W) if toy.orientation == "in,out" else W.shape[1], dtype=torch.float64)
    exact = bound(W, [delta], Grid(W.dtype), "nearest").exact
    room = 4 * (len(x) + delta.rank + 4) * 2.0**-53 * (wide.abs() + delta.double().magnitude())
    for name, answer in (("textbook", textbook), ("PEFT's layer", unmerged)):
        y = answer(x, wide, [delta.double()], toy.orientation)
        weights = y if toy.orientation == "in,out" else y.T
        _demand(bool(((weights - exact).abs() <= room).all()), f"the oracle's W + Δ is not that of {name}")
    order = torch.arange(delta.rank - 1, -1, -1)
    turned = Delta(delta.left[:, order], delta.right[order], delta.scaling, delta.dtype)
    doubled = Delta(delta.left, delta.right, 2 * delta.scaling, delta.dtype)
    _demand(torch.equal(doubled.double().value(), 2 * delta.double().value()), "Δ is not linear in the scaling")
    sound = {
        "a float32 merge": toy.merged(delta),
        "a merge with its ranks in another order": toy.merged(turned),
        "a float64 merge": exact.to(W.dtype),
        "PEFT's merge": peft_merged(W, delta, toy.orientation),
    }
    for name, merged in sound.items():
        _demand(not _beyond(toy, merged), f"the oracle refuses {name}")
    if not bool(delta.left.any()):
        _demand(torch.equal(sound["PEFT's merge"], W), "PEFT changes a weight by a delta of zero")
        _demand(torch.equal(exact, wide), "the oracle expects a change from a delta of zero")
    spoiled = sound["a float32 merge"].clone()
    spoiled[-1, 0] = torch.nan
    _demand(_beyond(toy, spoiled) == 1, "the oracle accepts NaN")


def power(chosen: Sequence[tuple[str, Stored, Stored, Sequence[Part]]], criterion: str) -> Finding:
    """Faults planted in memory in some of this run's tensors: (name, base, merged tensor, which lends its grid, parts).

    Each plant whose values leave the criterion's intervals must be flagged by C4's tally.
    """
    planted = armed = 0
    missed, hidden = [], []
    for name, base, merged, parts in chosen:
        rows = _spread(base)
        try:
            W, grid, deltas = base.rows(rows), merged.grid(rows), [factors(part) for part in parts]
        except DamagedError:  # C1 and C4 tell
            hidden.append(f"{name} cannot be read")
            continue
        here = [Delta(d.left[rows], d.right, d.scaling, d.dtype) for d in deltas]
        block = Block(0, W, tuple(here), decoded=base.decoded)
        right = block.bound(grid, criterion)
        for fault, value in _faults(W, here, deltas, rows):
            spoiled = grid.once(value)
            if bool(right.holds(spoiled.double()).all()):
                hidden.append(f"{fault} in {name}")
                continue
            planted += 1
            if _counted(block, spoiled, grid, criterion):
                armed += 1
            else:
                missed.append(f"{fault} in {name}")
    told = ""
    if missed:
        told = f"the gate does not see {len(missed)} of {planted} planted faults: {missed[0]}"
    elif chosen and not planted:
        told = "no planted fault leaves the criterion's intervals: this run could not tell a wrong merge from a right one"
    figures: dict[str, Figure] = {"armed": armed, "planted": planted, "not_armable": "\n".join(hidden)}
    return Finding(CODE, POWER, Outcome.FAILED if told else Outcome.PASSED, told, figures)


def self_check(findings: Sequence[Finding]) -> dict[str, Any]:
    """What the certificate says about the gate: how many faults were planted and seen, which could not be, how many examples agreed."""
    figures: dict[str, Figure] = {}
    for finding in findings:
        figures |= finding.figures if finding.code == CODE else {}
    counts = {name: figures.get(name, 0) for name in ("armed", "planted", "hypothesis_examples")}
    return counts | {"not_armable": str(figures.get("not_armable", "")).splitlines()}


def _faults(W: Tensor, here: Sequence[Delta], whole: Sequence[Delta], rows: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Each fault by name, and what these rows would hold, unrounded. here: the deltas of these rows; whole: of all rows."""

    def merged(factor: float, deltas: Sequence[Delta] = here) -> Tensor:
        return W.float() + factor * sum(delta.value() for delta in deltas)

    yield "a missing delta", merged(0.0)
    yield "a delta × 0.95", merged(0.95)
    if len(whole[0].left) == whole[0].right.shape[1]:
        yield "a transposed delta", merged(1.0, [Delta(d.right.T[rows], d.left.T, d.scaling, d.dtype) for d in whole])
    tile = merged(1.0)
    tile[:, :TILE] = merged(0.0)[:, :TILE]
    yield "an unmerged tile", tile


def _beyond(toy: Toy, merged: Tensor) -> int:
    return _counted(Block(0, toy.weight, (toy.delta,)), merged, Grid(merged.dtype), "nearest")


def _counted(block: Block, stored: Tensor, grid: Grid, criterion: str) -> int:
    """How many elements C4's tally refuses."""
    tally = c4_merged.Tally((len(stored), stored.shape[1]), Fidelity(None, flipped=False, noisy=False))
    tally.judge(block, stored, grid, criterion)
    return tally.beyond


def _spread(base: Stored) -> list[int]:
    """Row numbers from the first to the last, evenly."""
    rows, columns = base.shape
    count = max(1, min(rows, ROWS, ELEMENTS // max(1, columns)))
    return [number * (rows - 1) // max(1, count - 1) for number in range(count)]


def _demand(holds: bool, contradiction: str) -> None:
    if not holds:
        raise AssertionError(contradiction)
