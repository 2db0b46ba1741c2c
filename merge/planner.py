"""Headers, names and settings → `Plan`: everything that will happen, decided before a byte is written. Pure."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from merge import encodings
from merge.adapters import Adapter
from merge.catalog import Catalog, Tensor, compose
from merge.errors import NOTHING_WRITTEN, CheckpointError, MergeError, listing
from merge.nametable import NameTable
from merge.operation import Operation, Read, ShardPlan, Slabs
from merge.placement import Placed, place

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

    shards       in the base's order; their operations tile them
    """

    options: Options
    shards: tuple[ShardPlan, ...]
    adapter_tensors: int

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
        }


def plan(catalogs: Iterable[Catalog], adapters: Iterable[Adapter], table: NameTable, options: Options) -> Plan:
    """The operations of every shard.

    catalogs  one per base shard, in the order in which the shards are to be written

    Raises AdapterError (all of a kind in one message) if a tensor has no place, has the wrong shape, or meets something
    that this version does not merge into.
    """
    catalogs, adapters = tuple(catalogs), tuple(adapters)
    base = {tensor.name: tensor for catalog in catalogs for tensor in catalog.tensors}
    placed = place(adapters, table, base)
    target = OUTPUT_DTYPES[options.output_dtype]
    if target:
        _refuse_quantised(base.values(), options.output_dtype)
    dtypes = {main_dtype(base.values()): target} if target else {}
    shards = tuple(_shard(catalog, placed, dtypes, options) for catalog in catalogs)
    return Plan(options, shards, sum(len(adapter.tensors) for adapter in adapters))


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


def _shard(catalog: Catalog, placed: Mapping[str, Placed], dtypes: Mapping[str, str], options: Options) -> ShardPlan:
    """One output shard; where no dtype changes its header is the base's, byte for byte."""
    wanted = [(t.name, dtypes.get(t.dtype, t.dtype), t.shape) for t in catalog.tensors]
    changed = any(dtype != tensor.dtype for (_, dtype, _), tensor in zip(wanted, catalog.tensors, strict=True))
    out = compose(catalog.file, wanted, catalog.metadata) if changed else catalog
    operations = tuple(
        _operation(source, target, placed.get(source.name, ()), options.block_mib * MIB)
        for source, target in zip(catalog.tensors, out.tensors, strict=True)
    )
    return ShardPlan(catalog.file, out.header, out.size, operations)


def _operation(source: Tensor, target: Tensor, placed: Placed, block: int) -> Operation:
    match placed:
        case Read() as value:
            return Operation("replace", target, (value,), _slabs(value.tensor, target, block))
        case ():
            return Operation("copy", target, (Read("base", 0, source),), _slabs(source, target, block))
        case parts:
            return Operation("merge", target, (Read("base", 0, source),), _rows(source, target, block), parts)


def _slabs(source: Tensor, target: Tensor, block: int) -> Slabs:
    """Bytes where they are carried as they are, rows where they are decoded."""
    return Slabs(0, block, target.size) if source.dtype == target.dtype else _rows(source, target, block)


def _rows(source: Tensor, target: Tensor, block: int) -> Slabs:
    """As many rows as fit into a block, at least one, in the wider of the two dtypes."""
    length = target.shape[0] if target.shape else 1
    row = max(source.size, target.size) // max(1, length)
    return Slabs(0, max(1, block // max(1, row)), length)


def _slab_bytes(operation: Operation) -> int:
    """Stored bytes in and out, and the float32 twin, of one slab."""
    target = operation.target
    share = operation.slabs.height / max(1, operation.slabs.length)
    stored = operation.reads[0].tensor.size + target.size
    return int(min(1.0, share) * (stored + (0 if operation.verbatim else 4 * target.elements)))


def _factor_bytes(operation: Operation) -> int:
    """The adapter's factors as they are stored and as float32."""
    return sum(read.tensor.size + 4 * read.tensor.elements for part in operation.parts for read in (part.a, part.b))
