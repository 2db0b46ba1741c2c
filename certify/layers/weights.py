"""The same parameter in several versions, read from disk at the moment it is needed.

base        what the base holds                         unmerged    the base's, and PEFT's own layers where it was adapted
exact       W + Δ in float32, unrounded                 rounded     W + Δ, rounded once to the dtype that the merged tensor has
merged      what the merged checkpoint holds            admissible  rounded, moved by ± as far as a right merge may lie from it
shaken      exact, every number of W + Δ, of A and of B perturbed by chance: how strongly the unit answers to errors of its weights
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from certify.checks.c4_merged import rows_of
from certify.errors import NotInterpretedError
from certify.expect.expectation import factors
from certify.expect.ledger import Ledger
from certify.expect.target import BLOCK, Block, Target
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.dtypes import FLOATS
from certify.inputs.stored import Stored
from certify.layers.layout import Layout
from certify.layers.meter import Meter
from certify.layers.shaken import shaken, shaken_factors, signs
from certify.layers.unmerged import Unmerged

Kind = Literal["base", "unmerged", "exact", "rounded", "merged", "admissible", "shaken"]


@dataclass(frozen=True, slots=True)
class Version:
    """A version of all weights; `without`: disk keys whose delta is left out."""

    kind: Kind
    without: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Freedom:
    """Where a right merge has a choice, in some rows of a tensor.

    count  elements whose interval holds more than the rounded value     room  Σ D², D the most that they may be from it
    noise  Σ (r − exact)² over all elements: what rounding itself does
    """

    count: int = 0
    room: float = 0.0
    noise: float = 0.0

    def __add__(self, other: "Freedom") -> "Freedom":
        return Freedom(self.count + other.count, self.room + other.room, self.noise + other.noise)

    @property
    def ratio(self) -> float:
        return self.room / self.noise if self.noise else 0.0


@dataclass
class Weights:
    """What the lazy parameters of one model read. `version` is switched between two runs.

    used     disk keys read since it was emptied
    wrapped  adapted keys that PEFT's layers answer for in the unit that is being run
    carried  adapted keys of which PEFT had no layer in the unmerged version: W + Δ was read instead
    freedom  per key and first row of a block: found by the admissible version
    reading  the tensor that was asked for last
    """

    base: Checkpoint
    merged: Checkpoint
    ledger: Ledger
    layout: Layout
    unmerged: Unmerged
    criterion: str
    meter: Meter = field(default_factory=Meter)
    version: Version = Version("base")
    used: set[str] = field(default_factory=set)
    wrapped: set[str] = field(default_factory=set)
    carried: set[str] = field(default_factory=set)
    freedom: dict[str, dict[int, Freedom]] = field(default_factory=dict)
    reading: str = ""

    def load(self, parameter: str, expert: int | None, rows: slice | None) -> Tensor:
        """The numbers of a parameter, of one of its experts, or of some rows."""
        filling = self.layout.filling(parameter)
        if filling is None:
            raise NotInterpretedError(f"no tensor on disk fills {parameter}")
        if filling.converter is not None:
            whole = self.layout.convert(parameter, filling, lambda key: self._value(key, None))
            value = whole if expert is None else whole[expert]
            return self.meter.hold(value if rows is None else value[rows])
        if not filling.experts:
            value = self._value(filling.keys[0], rows if expert is None else slice(expert, expert + 1))
            return self.meter.hold(value if expert is None else value[0])
        numbers = range(len(filling.experts)) if expert is None else (expert,)
        matrices = [torch.cat([self._value(key, None) for key in filling.experts[number]]) for number in numbers]
        value = torch.stack(matrices) if expert is None else matrices[0]
        return self.meter.hold(value if rows is None else value[rows])

    def answer(self, parameter: str, expert: int, inputs: Tensor) -> Tensor | None:
        """Of one expert of a stack whose parts are adapted: what PEFT's layers around its linear maps answer, unmerged."""
        filling = self.layout.filling(parameter)
        if self.version.kind != "unmerged" or filling is None or not filling.experts:
            return None
        keys = filling.experts[expert]
        if not any(key in self.unmerged.trained for key in keys):
            return None
        answers = []
        for key in keys:
            weight = self.meter.hold(self._stored(key, None))
            answers.append(self.unmerged.expert(key, weight, inputs) if key in self.unmerged.trained else functional.linear(inputs, weight))
        return torch.cat(answers, dim=-1)

    def choices(self, keys: set[str]) -> tuple[int, float]:
        """(in how many elements of these tensors a right merge has a choice, the largest room/noise of one of them)."""
        found = [sum(self.freedom[key].values(), Freedom()) for key in keys & self.freedom.keys()]
        return sum(freedom.count for freedom in found), max((freedom.ratio for freedom in found), default=0.0)

    def _value(self, key: str, rows: slice | None) -> Tensor:
        self.used.add(key)
        kind, left = self.version.kind, key in self.version.without
        if kind == "merged":
            return _float(_read(self._side(self.merged, key), rows))
        if kind == "unmerged" and self._adapted(key) and key not in self.wrapped:
            self.carried.add(key)
            return self._added(key, rows, "exact")
        if kind in ("base", "unmerged") or left or not self._adapted(key):
            value = self._stored(key, rows)
            value = self._rounded(key, value, _first_row(value, rows)) if kind in ("rounded", "admissible") else value
        else:
            value = self._added(key, rows, kind)
        return shaken(key, value) if kind == "shaken" else value

    def _adapted(self, key: str) -> bool:
        return key in self.ledger.parts or key in self.ledger.composed

    def _stored(self, key: str, rows: slice | None) -> Tensor:
        """What the base holds, or what the adapter puts in its place."""
        self.used.add(key)
        if key in self.ledger.replaced and self.version.kind != "base" and key not in self.version.without:
            self.reading = key
            value = self.ledger.replaced[key].load().float()
            return value if rows is None else value[rows]
        return _float(_read(self._side(self.base, key), rows))

    def _added(self, key: str, rows: slice | None, kind: Kind) -> Tensor:
        """W + Δ, block of rows by block of rows."""
        if key in self.ledger.composed:
            return self._composed(key, rows, kind)
        base, deltas = self._side(self.base, key), [factors(part) for part in self.ledger.parts[key]]
        height, width = base.shape
        first, last, _ = (rows or slice(None)).indices(height)
        out = torch.empty(last - first, width)
        for row, W in _blocks(base, first, last):
            here = slice(row - first, row - first + len(W))
            chosen = [rows_of(delta, row, len(W)) for delta in deltas]
            if kind == "shaken":
                chosen = [shaken_factors(key, row, delta) for delta in chosen]
            added = chosen[0].value() if len(chosen) == 1 else torch.stack([delta.value() for delta in chosen]).sum(0)
            out[here] = W.float() + added
            if kind in ("rounded", "admissible"):
                out[here] = self._rounded(key, out[here], row)
            if kind == "admissible":
                out[here] += self._room(key, row, out[here], Block(row, W, tuple(chosen), decoded=base.decoded))
        return out

    def _composed(self, key: str, rows: slice | None, kind: Kind) -> Tensor:
        """The same for any other recipe: experts, convolutions, biases, DoRA, replaced rows. Whole blocks are made, and some rows kept."""
        self.reading, made = key, []
        for block in Target(self.ledger.composed[key], self.criterion).blocks():
            if kind == "shaken":
                block = replace(block, deltas=tuple(shaken_factors(key, block.row, delta) for delta in block.deltas))
            value = block.own()
            value = self._rounded(key, value, block.row) if kind in ("rounded", "admissible") else value
            made.append(value + self._room(key, block.row, value, block) if kind == "admissible" else value)
        whole = torch.cat(made).reshape(self.ledger.composed[key].shape)
        return whole if rows is None else whole[rows]

    def _room(self, key: str, row: int, rounded: Tensor, block: Block) -> Tensor:
        """±D: as far as a right merge may be from the rounded value, to a side by chance."""
        grid = self._side(self.merged, key).grid(range(row, row + len(rounded)))
        right = block.bound(grid, self.criterion)
        low = grid.finite(torch.stack([least for least, _ in right.intervals]).amin(0))
        high = grid.finite(torch.stack([most for _, most in right.intervals]).amax(0))
        room = torch.maximum((high - rounded).abs_(), (rounded - low).abs_())
        noise = (rounded - right.exact).square_().sum()
        self.freedom.setdefault(key, {})[row] = Freedom(int((room > 0).sum()), float(room.square().sum()), float(noise))
        return room.float() * signs(key, row, room.shape)

    def _rounded(self, key: str, value: Tensor, row: int) -> Tensor:
        """Rows of the tensor, seen as a matrix, from `row` on; rounded once to what the merged tensor can hold."""
        if not value.is_floating_point():
            return value
        matrix = value.reshape(-1, *value.shape[-1:])
        return self._side(self.merged, key).grid(range(row, row + len(matrix))).once(matrix).float().view(value.shape)

    def _side(self, checkpoint: Checkpoint, key: str) -> Stored:
        self.reading = key
        stored = checkpoint.tensors[key]
        if stored.numbers is None:
            raise NotInterpretedError(f"{key} is stored as {stored.dtype}; known are {', '.join(FLOATS)}")
        return stored


def _read(stored: Stored, rows: slice | None) -> Tensor:
    if rows is None or not stored.shape:
        return stored.load()
    first, last, _ = rows.indices(stored.shape[0])
    if len(stored.shape) == 2:
        return stored.rows(range(first, last))
    return stored.load()[first:last]


def _first_row(value: Tensor, rows: slice | None) -> int:
    """The number of the first row of what was read: a stack of matrices is one below the other."""
    return (rows.start or 0) * prod(value.shape[1:-1]) if rows else 0


def _float(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _blocks(stored: Stored, first: int, last: int) -> Iterator[tuple[int, Tensor]]:
    """(row, some rows from there in the stored dtype), from `first` to before `last`."""
    height = max(1, BLOCK // max(1, stored.shape[1]))
    if (first, last) == (0, stored.shape[0]):
        for number, block in enumerate(stored.elements(height * stored.shape[1])):
            yield number * height, block.view(-1, stored.shape[1])
        return
    for row in range(first, last, height):
        yield row, stored.rows(range(row, min(row + height, last)))
