"""Headers, names and settings → `Plan`: everything that will happen, decided before a byte is written. Pure."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from merge import encodings
from merge.adapters import Adapter
from merge.catalog import Catalog, Tensor, compose
from merge.errors import NOTHING_WRITTEN, CheckpointError, MergeError, listing
from merge.nametable import NameTable
from merge.operation import Magnitude, Operation, Read, ShardPlan, Slabs
from merge.placement import Equal, Placed, heads, place
from merge.placement.layers import outline

OUTPUT_DTYPES: Mapping[str, str | None] = {"same": None, "bf16": "BF16", "fp16": "F16", "fp32": "F32"}
MIB = 1 << 20
IMPORTS = 360 * MIB  # resident once torch and transformers are imported and the meta model is built, measured on Linux x86-64
PLANNED = 4096  # bytes per operation in memory, journal entries included, measured on a 46,183-tensor plan


@dataclass(frozen=True, slots=True)
class Options:
    """What the user chose and the bytes depend on.

    block_mib  stored mebibytes per slab: about what stays in a core's cache with its float32 twin
    """

    output_dtype: str = "same"
    rounding: str = "nearest"
    block_mib: int = 1

    def __post_init__(self) -> None:
        if self.output_dtype not in OUTPUT_DTYPES or self.rounding != "nearest" or self.block_mib < 1:
            raise MergeError(f"{self}: output_dtype {'|'.join(OUTPUT_DTYPES)}, rounding nearest, block_mib ≥ 1. {NOTHING_WRITTEN}")


@dataclass(frozen=True)
class Plan:
    """All that one merge will do.

    shards   in the base's order; their operations tile them
    edits    fields of config.json that must follow
    equal    tensors of the adapters that must hold the same numbers before anything is written      zero  those that must be zero
    literal  nobody knows the architecture: names were taken as they stand, and are to be looked at
    """

    options: Options
    shards: tuple[ShardPlan, ...]
    adapter_tensors: int
    edits: Mapping[str, Any] = field(default_factory=dict)
    equal: tuple[Equal, ...] = ()
    zero: tuple[Read, ...] = ()
    literal: bool = False

    @property
    def operations(self) -> Iterable[Operation]:
        """Every operation, in shard and file order."""
        return (operation for shard in self.shards for operation in shard.operations)

    @property
    def counts(self) -> dict[str, int]:
        """Tensors copied, merged and replaced."""
        found = Counter({"copied": 0, "merged": 0, "replaced": 0})
        found.update({"copy": "copied", "merge": "merged", "replace": "replaced"}[operation.kind] for operation in self.operations)
        return dict(found)

    @property
    def size(self) -> int:
        """Bytes of all output shards."""
        return sum(shard.size for shard in self.shards)

    @property
    def total_size(self) -> int:
        """Bytes of all output tensors, as an index counts them."""
        return sum(operation.target.size for operation in self.operations)

    @property
    def weight_map(self) -> dict[str, str]:
        """Tensor → shard, sorted by tensor."""
        return dict(sorted((operation.target.name, shard.file) for shard in self.shards for operation in shard.operations))

    def memory(self, workers: int) -> int:
        """Forecast of the peak resident bytes: the imports, the plan itself, and per worker two slabs with their float32 twin
        and the float32 factors of the widest operation."""
        widest = max((_slab_bytes(operation) for operation in self.operations), default=0)
        factors = max((_factor_bytes(operation) for operation in self.operations), default=0)
        return IMPORTS + PLANNED * sum(1 for _ in self.operations) + workers * (widest + factors)

    @cached_property
    def digest(self) -> str:
        """sha256 of the plan's JSON: what the journal and the manifest are bound to."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON data; the same inputs give the same data."""
        return {
            "options": asdict(self.options),
            "shards": [
                {
                    "file": shard.file,
                    "size": shard.size,
                    "header": hashlib.sha256(shard.header).hexdigest(),
                    "operations": [asdict(operation) for operation in shard.operations],
                }
                for shard in self.shards
            ],
            "adapter_tensors": self.adapter_tensors,
            "edits": dict(self.edits),
            "equal": [asdict(pair) for pair in self.equal],
            "zero": [asdict(read) for read in self.zero],
            "literal": self.literal,
        }


def plan(
    catalogs: Iterable[Catalog], adapters: Iterable[Adapter], table: NameTable, options: Options, *, edits: Mapping[str, Any] | None = None
) -> Plan:
    """The operations of every shard.

    catalogs  one per base shard, in the order in which the shards are to be written
    edits     fields of config.json that the adapters' training changed

    Raises AdapterError (all of a kind in one message) if a tensor has no place, has the wrong shape, or meets something
    that this version does not merge into.
    """
    catalogs, adapters = tuple(catalogs), tuple(adapters)
    entries = outline(catalogs, adapters)
    base = {name: tensor for shard in entries for name, tensor in shard}
    placement = place(adapters, table, base)
    if edits and "architectures" in edits:
        heads.refuse_half(table, placement)
    target = OUTPUT_DTYPES[options.output_dtype]
    if target:
        _refuse_quantised(base.values(), options.output_dtype)
    main = main_dtype(base.values())
    dtypes = {main: target} if target else {}
    new = [name for name in placement.placed if name not in base]
    shards = []
    for catalog, held in zip(catalogs, entries, strict=True):
        wanted = [_Wanted(name, source, placement.placed.get(name)) for name, source in held]
        if catalog is catalogs[-1]:
            wanted += [_Wanted(name, None, placement.placed[name]) for name in new]
        shards.append(_shard(catalog, wanted, main, dtypes, options))
    return Plan(
        options,
        tuple(shards),
        sum(len(adapter.tensors) for adapter in adapters),
        edits={**(edits or {}), **heads.edits(placement, new, edits)},
        equal=placement.equal,
        zero=placement.zero,
        literal=not table.known,
    )


def _refuse_quantised(tensors: Iterable[Tensor], output_dtype: str) -> None:
    """Raises CheckpointError where another output dtype would have to decode what this version only carries."""
    quantised = [str(tensor) for tensor in tensors if tensor.dtype.startswith(("F8", "F6", "F4"))]
    if quantised:
        raise CheckpointError(
            f"--output-dtype {output_dtype}: {len(quantised)} tensors are quantised, and this version does not decode them\n"
            f"{listing(quantised)}\n{NOTHING_WRITTEN}"
        )


def main_dtype(tensors: Iterable[Tensor]) -> str:
    """The plain dtype that holds most of a checkpoint's elements; what it keeps apart (an F32 router bias) is another one."""
    held: Counter[str] = Counter()
    for tensor in tensors:
        if encodings.of(tensor):
            held[tensor.dtype] += tensor.elements
    return max(sorted(held), key=lambda dtype: held[dtype], default="")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One tensor of an output shard: the base's tensor of its place, and what the adapters make of it."""

    name: str
    source: Tensor | None
    placed: Placed | None

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

    def dtype(self, main: str) -> str:
        """The base's own, also where a trained tensor takes its place; the checkpoint's main dtype where there is none."""
        held = self.source or (self.begun.tensor if self.begun.place == "base" else None)
        return held.dtype if held else main


def _shard(catalog: Catalog, wanted: list[_Wanted], main: str, dtypes: Mapping[str, str], options: Options) -> ShardPlan:
    """One output shard; where no name, dtype or shape changes its header is the base's, byte for byte."""
    specs = [(w.name, dtypes.get(w.dtype(main), w.dtype(main)), w.shape) for w in wanted]
    changed = specs != [(tensor.name, tensor.dtype, tensor.shape) for tensor in catalog.tensors]
    out = compose(catalog.file, specs, catalog.metadata) if changed else catalog
    operations = tuple(_operation(w, target, options.block_mib * MIB) for w, target in zip(wanted, out.tensors, strict=True))
    return ShardPlan(catalog.file, out.header, out.size, operations)


def _operation(wanted: _Wanted, target: Tensor, block: int) -> Operation:
    read, placed = wanted.begun, wanted.placed
    if placed and placed.steps:
        slabs = _rows(read.tensor, target, block, placed.rows)
        passes = 2 if any(isinstance(step, Magnitude) and step.axis == 0 for step in placed.steps) else 1
        return Operation("merge", target, (read,), slabs, placed.steps, passes)
    return Operation("replace" if read.place == "adapter" else "copy", target, (read,), _slabs(read.tensor, target, block))


def _slabs(source: Tensor, target: Tensor, block: int) -> Slabs:
    """Bytes where they are carried as they are, rows where they are decoded."""
    rows = target.shape[0] if target.shape else 1
    return Slabs(0, block, target.size) if source.dtype == target.dtype else _rows(source, target, block, rows)


def _rows(source: Tensor, target: Tensor, block: int, length: int) -> Slabs:
    """As many rows as fit into a block, at least one, in the wider of the two dtypes."""
    row = max(source.size, target.size) // max(1, length)
    return Slabs(0, max(1, block // max(1, row)), length)


def _slab_bytes(operation: Operation) -> int:
    """Stored bytes in and out, and the float32 twin, of one slab."""
    target = operation.target
    share = operation.slabs.height / max(1, operation.slabs.length)
    stored = operation.reads[0].tensor.size + target.size
    return int(min(1.0, share) * (stored + (0 if operation.verbatim else 4 * target.elements)))


def _factor_bytes(operation: Operation) -> int:
    """The adapter's factors as they are stored and as float32; experts share one stored tensor."""
    reads = {(read.index, read.tensor.file, read.tensor.start): read.tensor for part in operation.parts for read in part.reads}
    return sum(tensor.size + 4 * tensor.elements for tensor in reads.values())
