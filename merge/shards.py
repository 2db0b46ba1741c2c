"""One output shard: what each of its tensors is made from, and how the work is cut. Pure."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from merge.catalog import Catalog, Tensor, compose
from merge.operation import Magnitude, Operation, Read, Scale, ShardPlan, Slabs
from merge.placement import Placed

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Storage:
    """How the base stores its numbers, and how the output will.

    base    every tensor that the output begins as      placed  what the adapters make of some of them
    main    the base's main plain dtype      dtypes  those that become another one      scales  weight → its scale, where it is quantised
    suffix  what follows a weight's name in the name of its scale      block  stored bytes per slab
    columns  a weight whose columns belong together is cut into whole matrices: rounding looks at columns there
    """

    base: Mapping[str, Tensor]
    placed: Mapping[str, Placed]
    main: str
    dtypes: Mapping[str, str]
    scales: Mapping[str, Scale]
    suffix: str
    block: int
    columns: bool = False

    def wanted(self, name: str) -> "_Wanted":
        """One tensor of the output."""
        return _Wanted(name, self.base.get(name), self.placed.get(name), self.scales.get(name))

    def owner(self, name: str) -> "_Wanted | None":
        """The changed weight whose scale this tensor is."""
        weight = name.removesuffix(self.suffix)
        found = self.wanted(weight) if weight != name and weight in self.scales else None
        return found if found and found.changed else None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One tensor of an output shard: the base's tensor of its place, what the adapters make of it, its scale where it is quantised."""

    name: str
    source: Tensor | None
    placed: Placed | None
    scale: Scale | None

    @property
    def begun(self) -> Read:
        """What it is made from."""
        if self.placed:
            return self.placed.read
        assert self.source is not None, "a tensor that the base has not is placed"
        return Read("base", 0, self.source)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.placed.shape if self.placed else self.begun.tensor.shape

    @property
    def changed(self) -> bool:
        return self.placed is not None and (bool(self.placed.steps) or self.begun.place == "adapter")

    def dtype(self, main: str) -> str:
        """The base's own, also where a trained tensor takes its place; the checkpoint's main dtype where there is none."""
        held = self.source or (self.begun.tensor if self.begun.place == "base" else None)
        return held.dtype if held else main


def shard(catalog: Catalog, names: Iterable[str], storage: Storage) -> ShardPlan:
    """One output shard, of these tensors in this order; where no name, dtype or shape changes its header is the base's, byte for byte."""
    wanted = [storage.wanted(name) for name in names]
    kept = [w.dtype(storage.main) for w in wanted]
    specs = [(w.name, storage.dtypes.get(dtype, dtype), w.shape) for w, dtype in zip(wanted, kept, strict=True)]
    changed = specs != [(tensor.name, tensor.dtype, tensor.shape) for tensor in catalog.tensors]
    out = compose(catalog.file, specs, catalog.metadata) if changed else catalog
    operations = tuple(_operation(w, target, storage) for w, target in zip(wanted, out.tensors, strict=True))
    return ShardPlan(catalog.file, out.header, out.size, operations)


def _operation(wanted: _Wanted, target: Tensor, storage: Storage) -> Operation:
    read, placed, owner = wanted.begun, wanted.placed, storage.owner(wanted.name)
    if owner and owner.source:
        weight = _operation(owner, owner.source, storage)
        return Operation("scale", target, weight.reads, Slabs(0, 1, 1), weight.parts, weight.passes, weight.scale, weight.slabs)
    if placed and placed.steps:
        slabs = _rows(read.tensor, target, storage.block, placed.rows, wanted.scale)
        passes = 2 if any(isinstance(step, Magnitude) and step.axis == 0 for step in placed.steps) else 1
        merged = Operation("merge", target, (read,), slabs, placed.steps, passes, wanted.scale)
        return replace(merged, slabs=_matrices(target, placed.rows)) if storage.columns and not merged.whole else merged
    kind: Literal["replace", "copy", "convert"] = "replace" if read.place == "adapter" else "copy"
    if read.tensor.dtype == target.dtype:
        return Operation(kind, target, (read,), Slabs(0, storage.block, target.size))
    slabs = _rows(read.tensor, target, storage.block, math.prod(target.shape[:-1] or target.shape), wanted.scale)
    return Operation("convert" if kind == "copy" else kind, target, (read,), slabs, scale=wanted.scale)


def _matrices(target: Tensor, rows: int) -> Slabs:
    """One matrix of a stack at a time."""
    height = target.shape[-2] if len(target.shape) > 1 else rows
    return Slabs(0, height, rows, height)


def _rows(source: Tensor, target: Tensor, block: int, length: int, scale: Scale | None) -> Slabs:
    """As many rows as fit into a block, at least one, in the wider of the two dtypes.

    Slabs of a quantised weight begin and end with its blocks of scales, or lie inside one, and never reach into another matrix.
    """
    row = max(source.size, target.size) // max(1, length)
    height = max(1, block // max(1, row))
    if scale is None:
        return Slabs(0, height, length)
    while height % scale.height and scale.height % height:
        height -= 1
    return Slabs(0, min(height, target.shape[-2]), length, target.shape[-2])
