"""What the adapters ask of one tensor of the output, gathered before anything is decided about it."""

import itertools
from dataclasses import dataclass, field

from merge.catalog import Tensor
from merge.operation import Magnitude, Part, Read, Rows, Shift, Step


@dataclass(frozen=True, slots=True)
class Placed:
    """One tensor of the output that is not a copy.

    read   what it begins as      steps  what happens to it
    shape  of the output tensor   rows   its rows, as the steps count them
    """

    read: Read
    steps: tuple[Step, ...]
    shape: tuple[int, ...]
    rows: int


@dataclass(slots=True)
class Site:
    """One tensor of the base, or one that the base has not.

    tensor     the base's tensor that it begins as; None for a new head
    taken      everything that takes its place
    snapshots  of embeddings: what the base was when training began      again  what was saved a second time
    stacked    it holds several matrices, one below the other
    """

    tensor: Tensor | None
    taken: list[Read] = field(default_factory=list)
    snapshots: list[Read] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    again: list[Read] = field(default_factory=list)
    stacked: bool = False

    @property
    def changed(self) -> bool:
        """True where more than a snapshot or single rows is asked for."""
        return bool(self.taken) or any(not isinstance(step, Rows) for step in self.steps)

    @property
    def rows(self) -> bool:
        """True where single rows take trained values."""
        return any(isinstance(step, Rows) for step in self.steps)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor that the steps act on."""
        first = self.snapshots[0].tensor if self.snapshots else self.tensor
        return first.shape if first else self.taken[0].tensor.shape

    def problem(self, name: str) -> str:
        """Why this cannot all be merged; empty if it can."""
        adapters = {read.index for step in self.steps for read in step.reads} | {read.index for read in self.taken}
        if len(self.taken) > 1 or (self.taken and self.steps):
            return f"{name}: two contributions of which one at most can be merged claim this tensor"
        if len(adapters) > 1 and any(isinstance(step, Magnitude) for step in self.steps):
            return f"{name}: DoRA sets the length of a weight, so that it cannot be combined with another adapter on the same weight"
        if len(adapters) > 1 and self.rows:
            return f"{name}: single rows take trained values there, and another adapter changes the same tensor"
        if self.rows and len(self.steps) > 1:
            return f"{name}: single rows take trained values there, and the adapter changes the same tensor besides"
        if self.again and not self.taken:
            return f"{name}: the adapter holds it a second time, and not a first time"
        if self.snapshots and self.taken:
            return f"{name}: the adapter holds both a copy of the base and a trained tensor"
        windows = sorted((part.a.index, part.at, part.at + part.rows[1] - part.rows[0]) for part in self.steps if isinstance(part, Part))
        overlap = any(i == j and stop > start for (i, _, stop), (j, start, _) in itertools.pairwise(windows))
        shifts = [step.value.index for step in self.steps if isinstance(step, Shift)]
        if overlap or len(set(shifts)) < len(shifts):
            return f"{name}: two contributions of which one at most can be merged claim this tensor"
        return ""

    def placed(self) -> Placed:
        """The decision: replaced, or begun as the base or its snapshot, with deltas first, lengths next, single rows last."""
        if self.taken:
            read = self.taken[0]
        elif self.snapshots:
            read = self.snapshots[0]
        else:
            assert self.tensor is not None, "a tensor that the base has not is replaced"
            read = Read("base", 0, self.tensor)
        shape = read.tensor.shape
        rows = shape[0] * shape[1] if self.stacked and len(shape) == 3 else shape[0] if shape else 1
        return Placed(read, tuple(sorted(self.steps, key=_turn)), shape, rows)


def _turn(step: Step) -> int:
    return 1 if isinstance(step, Magnitude) else 2 if isinstance(step, Rows) else 0
