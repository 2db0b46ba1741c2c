"""What is asked of a merge, and everything that can be known of it from headers. Reads; writes nothing."""

import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from merge import architecture, encodings, fidelity, planner, side_files, source
from merge.adapter_files import read_adapter
from merge.adapters import Adapter, config
from merge.catalog import Catalog
from merge.errors import NOTHING_WRITTEN, AdapterError, OutputError
from merge.manifest import MANIFEST, Manifest, shard_entry
from merge.operation import ShardRecord
from merge.placement import layers
from merge.placement.layers import outline

RUN_FILE = "merge-run.jsonl"
ENGINE = {"name": "mergegate", "version": version("mergegate"), "plan": "4"}  # plan: the format that digests are of


@dataclass(frozen=True)
class Merge:
    """One merge: its inputs, and everything that can be known of it from headers. Making one reads; nothing is written.

    Raises MergeError (exit code 3) for whatever cannot be merged.
    """

    base: Path
    adapters: tuple[Path, ...]
    out: Path
    options: planner.Options
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.adapters or len(self.weights) not in (0, len(self.adapters)) or not all(map(math.isfinite, self.weights)):
            raise AdapterError(f"{len(self.adapters)} adapters and weights {self.weights}: one finite weight each. {NOTHING_WRITTEN}")
        if len({folder.resolve() for folder in self.adapters}) < len(self.adapters):
            raise AdapterError(f"the same adapter is named twice; give it once with the sum of the weights. {NOTHING_WRITTEN}")
        for folder in (self.base, *self.adapters):
            if self.out.resolve() == folder.resolve() or folder.resolve() in self.out.resolve().parents:
                raise OutputError(f"--out {self.out} lies in {folder}, which is only read. {NOTHING_WRITTEN}")
            if self.out.resolve() in folder.resolve().parents:
                raise OutputError(f"{folder} lies in --out {self.out}. {NOTHING_WRITTEN}")

    @cached_property
    def catalogs(self) -> tuple[Catalog, ...]:
        """The base's shards, as their headers describe them."""
        _ = self.base_stamps  # before anything is read
        return source.read_base(self.base)

    @cached_property
    def base_stamps(self) -> dict[str, source.Stamp]:
        """What the base's files were when their headers were read."""
        return source.stamps(self.base)

    @cached_property
    def opened(self) -> tuple[Adapter, ...]:
        """The adapters, as their headers and configurations describe them."""
        weights = self.weights or (1.0,) * len(self.adapters)
        _ = self.adapter_stamps  # before anything is read
        found = []
        for index, (folder, weight) in enumerate(zip(self.adapters, weights, strict=True)):
            settings, tensors = read_adapter(folder)
            found.append(Adapter.of(index, config.read(settings), tensors, weight))
        return tuple(found)

    @cached_property
    def plan(self) -> planner.Plan:
        """Every operation; the tokenizer is held against the embedding as well."""
        made, rows = self._made
        if rows is not None:
            side_files.refuse_tokens_beyond(self.side_files, made.edits.get("vocab_size", rows))
        return made

    @cached_property
    def scheme(self) -> encodings.Scheme | None:
        """How the base is quantised, by its configuration."""
        _ = self.catalogs  # where they are missing, that is what is to be said
        return encodings.quantised(architecture.read_config(self.base / side_files.CONFIG))

    @property
    def decoded(self) -> bool:
        """True where the base is quantised and the output is not."""
        return self.scheme is not None and self.options.output_dtype != "same"

    @cached_property
    def _made(self) -> tuple[planner.Plan, int | None]:
        """(the plan, rows of the base's input embeddings)."""
        scheme = self.scheme  # a foreign one is refused by name, before anything else is made of the configuration
        keys = {name: tensor for shard in outline(self.catalogs, self.opened) for name, tensor in shard}
        wanted = {name for adapter in self.opened for contribution in adapter.contributions for name in contribution.names}
        path = self.base / side_files.CONFIG
        settings = architecture.read_config(path)
        heads = {architecture.with_head(settings, adapter.settings.task) for adapter in self.opened} - {None}
        if len(heads) > 1:
            raise AdapterError(f"the adapters were trained for different heads: {sorted(map(str, heads))}. {NOTHING_WRITTEN}")
        head, edits = next(iter(heads), None), self._stacked(path)
        table = architecture.name_table(path, keys, wanted, head=head, changes=edits)
        edits |= {"architectures": [head]} if head else {}
        made = planner.plan(self.catalogs, self.opened, table, self.options, edits=edits, scheme=scheme)
        return made, keys[table.embedding].shape[0] if table.embedding else None

    def _stacked(self, path: Path) -> dict[str, Any]:
        """What config.json must say of a stack that repeats layers."""
        numbers = next((adapter.settings.replication for adapter in self.opened if adapter.settings.replication), None)
        if numbers is None:
            return {}
        edits = layers.edits(numbers, architecture.filled(path), self.catalogs)
        architecture.refuse_other_layers(path, edits, numbers)
        return edits

    @cached_property
    def side_files(self) -> side_files.SideFiles:
        """What will stand beside the shards."""
        shards = [catalog.file for catalog in self.catalogs]
        new_config = self.options.output_dtype != "same" or bool(self._made[0].edits)
        return side_files.survey(self.base, self.adapters, shards, new_config=new_config, decoded=self.decoded)

    @cached_property
    def adapter_stamps(self) -> tuple[dict[str, source.Stamp], ...]:
        """What the adapters' files were when their headers were read: none may change before the last shard is durable."""
        return tuple(source.stamps(folder) for folder in self.adapters)

    @cached_property
    def adapter_files(self) -> tuple[dict[str, str], ...]:
        """sha256 of every adapter file, by relative path. Reads the adapters whole."""
        return tuple({p.relative_to(folder).as_posix(): source.sha256(p) for p in source.files_below(folder)} for folder in self.adapters)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the bytes of the output depend on, and the files that will be written: what a journal is bound to."""
        headers = sha256(b"".join(catalog.header for catalog in self.catalogs)).hexdigest()
        return {
            "engine": ENGINE,
            "options": asdict(self.plan.options),
            "base": {"headers": headers, "shards": {c.file: list(self.base_stamps[c.file]) for c in self.catalogs}},
            "adapters": [
                {"digest": source.folder_digest(files), "files": files, "weight": adapter.weight}
                for files, adapter in zip(self.adapter_files, self.opened, strict=True)
            ],
            "plan": self.plan.digest,
            "files": [*(shard.file for shard in self.plan.shards), source.INDEX, *self.side_files.origins, MANIFEST, RUN_FILE],
        }

    @property
    def written(self) -> dict[str, bytes]:
        """The files beside the shards that are written anew, the manifest aside: index, config.json where it changes, model card."""
        made, path = self.plan, self.base / side_files.CONFIG
        found = {}
        if (self.base / source.INDEX).exists():
            found[source.INDEX] = side_files.index(made.weight_map, made.total_size, self.base / source.INDEX, self.options.output_dtype)
        if self.side_files.origins.get(side_files.CONFIG) == "written":
            found[side_files.CONFIG] = side_files.config(path, self.options.output_dtype, made.edits, encodings.DECLARED_IN)
        return found | {side_files.CARD: side_files.card(self.base, self.adapters, made.counts)}

    @property
    def disk(self) -> int:
        """Bytes that the finished output will occupy, small written files aside."""
        return self.plan.size + sum(path.stat().st_size for path in self.side_files.sources.values())

    def manifest(self, records: Iterable[ShardRecord]) -> Manifest:
        """The manifest of this merge, once every shard has its record."""
        records = sorted(records, key=lambda record: record.file)
        sums = {name: fidelity.Sums(*values) for record in records for name, values in record.sums.items()}
        rule = self.plan.options.rounding
        split = {operation.target.name for operation in self.plan.operations if not operation.whole and rule != "faithful"}
        facts = self.facts
        return Manifest(
            out=self.out,
            engine=ENGINE,
            plan=self.plan.digest,
            base={"name": self.base.resolve().name, "headers": facts["base"]["headers"]},
            adapters=tuple(
                {"path": Path(os.path.relpath(folder.resolve(), self.out.resolve())).as_posix(), **entry}
                for folder, entry in zip(self.adapters, facts["adapters"], strict=True)
            ),
            options=facts["options"],
            tensors=self.plan.counts,
            adapter_tensors=self.plan.adapter_tensors,
            shards={record.file: shard_entry(record) for record in records},
            side_files=self.side_files.origins,
            stale=self.side_files.stale,
            fidelity=fidelity.table(sums, rule, split),
        )
