"""Headers, names and settings → `Plan`: everything that will happen, decided before a byte is written. Pure."""

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from merge import encodings
from merge.adapters import Adapter
from merge.catalog import Catalog, Tensor
from merge.errors import NOTHING_WRITTEN, CheckpointError, MergeError, listing
from merge.nametable import NameTable
from merge.operation import Operation, Read, Scale, ShardPlan
from merge.placement import Equal, Placement, heads, place
from merge.placement.layers import outline
from merge.rounding import ROUNDS, RULES
from merge.shards import MIB, Storage, shard

OUTPUT_DTYPES: Mapping[str, str | None] = {"same": None, "bf16": "BF16", "fp16": "F16", "fp32": "F32"}
COUNTED = {"copy": "copied", "merge": "merged", "replace": "replaced", "convert": "converted", "scale": "scales"}


@dataclass(frozen=True, slots=True)
class Options:
    """What the user chose and the bytes depend on.

    rounding   a rule of `merge.rounding`; empty: the one that suits the base, see `settled`
    block_mib  stored mebibytes per slab: about what stays in a core's cache with its float32 twin
    rounds     of faithful, at most      seed  of stochastic
    """

    output_dtype: str = "same"
    rounding: str = ""
    block_mib: int = 1
    rounds: int = ROUNDS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.output_dtype not in OUTPUT_DTYPES or self.rounding not in ("", *RULES) or self.block_mib < 1 or self.rounds < 1:
            raise MergeError(
                f"{self}: output_dtype {'|'.join(OUTPUT_DTYPES)}, rounding {'|'.join(RULES)}, block_mib and rounds ≥ 1. {NOTHING_WRITTEN}"
            )

    def settled(self, *, quantised: bool) -> "Options":
        """With the rounding that will be used: faithful where a quantised base keeps its format, whose steps are coarse; else nearest."""
        return replace(self, rounding=self.rounding or ("faithful" if quantised and self.output_dtype == "same" else "nearest"))


@dataclass(frozen=True)
class Plan:
    """All that one merge will do.

    shards   in the base's order; their operations tile them
    edits    fields of config.json that must follow
    equal    tensors of the adapters that must hold the same numbers before anything is written      zero  those that must be zero
    literal  nobody knows the architecture: names were taken as they stand, and are to be looked at
    dropped  tensors of a quantised base that its decoded form has not: the scales
    """

    options: Options
    shards: tuple[ShardPlan, ...]
    adapter_tensors: int
    edits: Mapping[str, Any] = field(default_factory=dict)
    equal: tuple[Equal, ...] = ()
    zero: tuple[Read, ...] = ()
    literal: bool = False
    dropped: tuple[str, ...] = ()

    @property
    def operations(self) -> Iterable[Operation]:
        """Every operation, in shard and file order."""
        return (operation for shard in self.shards for operation in shard.operations)

    @property
    def counts(self) -> dict[str, int]:
        """Tensors copied, merged and replaced; and where there are any, converted, and scales that follow a merged weight."""
        found = Counter({"copied": 0, "merged": 0, "replaced": 0})
        found.update(COUNTED[operation.kind] for operation in self.operations)
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

    @cached_property
    def digest(self) -> str:
        """sha256 of the plan's JSON: what the journal and the manifest are bound to."""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON data; the same inputs give the same data."""
        found: dict[str, Any] = json.loads(self._text())
        return found

    def _text(self) -> str:
        """JSON with sorted keys; a dataclass is an object of its fields."""
        stated = {
            "options": self.options,
            "shards": [
                {
                    "file": shard.file,
                    "size": shard.size,
                    "header": hashlib.sha256(shard.header).hexdigest(),
                    "operations": shard.operations,
                }
                for shard in self.shards
            ],
            "adapter_tensors": self.adapter_tensors,
            "edits": dict(self.edits),
            "equal": self.equal,
            "zero": self.zero,
            "literal": self.literal,
            "dropped": self.dropped,
        }
        return json.dumps(stated, sort_keys=True, default=lambda held: {name: getattr(held, name) for name in held.__dataclass_fields__})


def plan(
    catalogs: Iterable[Catalog],
    adapters: Iterable[Adapter],
    table: NameTable,
    options: Options,
    *,
    edits: Mapping[str, Any] | None = None,
    scheme: encodings.Scheme | None = None,
) -> Plan:
    """The operations of every shard.

    catalogs  one per base shard, in the order in which the shards are to be written
    edits     fields of config.json that the adapters' training changed      scheme  how the base is quantised, if it is

    Raises AdapterError (all of a kind in one message) if a tensor has no place, has the wrong shape, or meets something
    that this version does not merge into.
    """
    catalogs, adapters, options = tuple(catalogs), tuple(adapters), options.settled(quantised=scheme is not None)
    entries = outline(catalogs, adapters)
    base = {name: tensor for shard in entries for name, tensor in shard}
    scales = scheme.scales(base) if scheme else {}
    placement = place(adapters, table, base, frozenset(base[name].name for name in scales))
    if edits and "architectures" in edits:
        heads.refuse_half(table, placement)
    companions = scheme.companions(base, scales) if scheme else frozenset[str]()
    dropped = companions if OUTPUT_DTYPES[options.output_dtype] else frozenset[str]()
    storage = _storage(base, placement, scales, companions, options, scheme)
    new = [name for name in placement.placed if name not in base]
    shards = []
    for catalog, held in zip(catalogs, entries, strict=True):
        names = [name for name, _ in held if name not in dropped]
        shards.append(shard(catalog, names + (new if catalog is catalogs[-1] else []), storage))
    return Plan(
        options,
        tuple(shards),
        sum(len(adapter.tensors) for adapter in adapters),
        edits={**(edits or {}), **heads.edits(placement, new, edits)},
        equal=placement.equal,
        zero=placement.zero,
        literal=not table.known,
        dropped=tuple(sorted(dropped)),
    )


def _storage(
    base: Mapping[str, Tensor],
    placement: Placement,
    scales: Mapping[str, Scale],
    companions: frozenset[str],
    options: Options,
    scheme: encodings.Scheme | None,
) -> Storage:
    """How every tensor of the output is stored. companions  the tensors that belong to quantised weights: their scales, and the like"""
    target = OUTPUT_DTYPES[options.output_dtype]
    if target:
        _refuse_undecodable(base, scales.keys() | companions, options)
    main = main_dtype(tensor for name, tensor in base.items() if name not in companions)
    dtypes = {main: target, encodings.CODES: target} if target else {}
    suffix, block = scheme.suffix if scheme else "", options.block_mib * MIB
    return Storage(base, placement.placed, main, dtypes, scales, suffix, block, options.rounding == "faithful")


def _refuse_undecodable(base: Mapping[str, Tensor], known: Collection[str], options: Options) -> None:
    """Raises CheckpointError where a quantised tensor has no scale to be decoded with."""
    lost = [str(tensor) for name, tensor in base.items() if tensor.dtype.startswith(("F8", "F6", "F4")) and name not in known]
    if lost:
        raise CheckpointError(
            f"--output-dtype {options.output_dtype}: {len(lost)} quantised tensors have no scale that config.json speaks of\n"
            f"{listing(lost)}\n{NOTHING_WRITTEN}"
        )


def main_dtype(tensors: Iterable[Tensor]) -> str:
    """The plain dtype that holds most of a checkpoint's elements; what it keeps apart (an F32 router bias) is another one."""
    held: Counter[str] = Counter()
    for tensor in tensors:
        if encodings.of(tensor):
            held[tensor.dtype] += tensor.elements
    return max(sorted(held), key=lambda dtype: held[dtype], default="")
