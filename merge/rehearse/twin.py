"""A shrunken twin of a real base and its adapters: the same keys, dtypes, shards and settings, small dimensions, seeded numbers.

Only headers, configurations and small side files of the real ones are read.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from merge import adapter_files, encodings, side_files
from merge.adapters import Adapter
from merge.adapters import config as adapter_config
from merge.catalog import Catalog, Tensor, compose
from merge.errors import NOTHING_WRITTEN, MergeError
from merge.planner import Plan
from merge.proxies.checkpoint import write_tokenizer
from merge.rehearse import adapter as small_adapter
from merge.rehearse import numbers
from merge.rehearse.shapes import Shape
from merge.rehearse.sketch import Sketch, Studio
from merge.source import INDEX, read_json
from merge.task import Merge

GENERATION = "generation_config.json"
CARRIED = 1 << 20  # bytes; larger side files say nothing that a small model needs


@dataclass(frozen=True)
class Twin:
    """The merge of the twin. sketch  how it was cut      size  bytes of its base and adapters, side files included"""

    work: Merge
    sketch: Sketch
    size: int


def make(work: Merge, room: Path, *, seed: int = 0) -> Twin:
    """Write base and adapters below `room`; raises MergeError where no cut keeps what the merge depends on."""
    _ = work.plan  # whatever is refused of the real merge is refused first
    studio = Studio(work)
    sketch = studio.best()
    base = room / "base"
    _write_base(studio, sketch, base, seed)
    folders = []
    for number, (folder, adapter, shapes) in enumerate(zip(work.adapters, work.opened, sketch.adapters, strict=True)):
        folders.append(room / (f"adapter-{number}" if len(work.adapters) > 1 else "adapter"))
        _write_adapter(work, folder, adapter, shapes, sketch, folders[-1], seed)
    twin = replace(work, base=base, adapters=tuple(folders), out=room / "merged")
    _refuse_other_work(work.plan, twin)
    return Twin(twin, sketch, sum(path.stat().st_size for folder in (base, *folders) for path in folder.rglob("*") if path.is_file()))


def _write_base(studio: Studio, sketch: Sketch, out: Path, seed: int) -> None:
    work = studio.work
    out.mkdir(parents=True)
    catalogs = [_small(catalog, sketch.base) for catalog in work.catalogs]
    tensors = {tensor.name: tensor for catalog in catalogs for tensor in catalog.tensors}
    scheme = encodings.quantised(sketch.config)
    made = numbers.Base(scheme.scales(tensors) if scheme else {}, _ties(studio), seed)
    for catalog in catalogs:
        _write(out / catalog.file, catalog, made.content)
    if (work.base / INDEX).exists():
        total, placed = sum(tensor.size for tensor in tensors.values()), {tensor.name: tensor.file for tensor in tensors.values()}
        (out / INDEX).write_bytes(side_files.index(dict(sorted(placed.items())), total, work.base / INDEX))
    _put(out / side_files.CONFIG, sketch.config)
    _carry(work, sketch, out)


def _small(catalog: Catalog, shapes: Mapping[str, Shape]) -> Catalog:
    """The same file with other shapes, its tensors in the same order."""
    return compose(catalog.file, [(tensor.name, tensor.dtype, shapes[tensor.name]) for tensor in catalog.tensors], catalog.metadata)


def _write(path: Path, catalog: Catalog, content: Callable[[Tensor], bytes]) -> None:
    with path.open("wb") as stream:
        stream.write(catalog.header)
        for tensor in catalog.tensors:
            stream.write(content(tensor))


def _ties(studio: Studio) -> Mapping[str, str]:
    """Tensor → the one that it is tied to, where the files hold both."""
    keys = {weight.parameter: weight.key for weight in studio.table.weights if not weight.fused}
    return {keys[one]: keys[other] for one, other in studio.table.tied.items() if one in keys and other in keys}


def _carry(work: Merge, sketch: Sketch, out: Path) -> None:
    """The small side files; a tokenizer for the small vocabulary where there is one."""
    files = {name: path for name, path in work.side_files.sources.items() if work.side_files.origins[name] == "base"}
    files[side_files.CARD] = work.base / side_files.CARD
    skipped = (side_files.CONFIG, GENERATION, *side_files.TOKENIZER)
    for name, path in files.items():
        if name not in skipped and path.is_file() and path.stat().st_size <= CARRIED:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / name)
    if (work.base / GENERATION).is_file():
        _put(out / GENERATION, sketch.cut.side(read_json(work.base / GENERATION)))
    if any((work.base / name).is_file() for name in side_files.TOKENIZER):
        write_tokenizer(out)


def _write_adapter(work: Merge, real: Path, adapter: Adapter, shapes: Mapping[str, Shape], sketch: Sketch, out: Path, seed: int) -> None:
    out.mkdir()
    settings, stored = adapter_files.read_adapter(real)
    config = small_adapter.config(settings, adapter.settings, sketch.ranks)
    _put(out / adapter_files.CONFIG, config)
    specs = [(name, tensor.dtype, shapes[name]) for name, tensor in stored.items()]
    catalog = compose(adapter_files.SAFE, specs, {"format": "pt"})
    small = Adapter.of(adapter.index, adapter_config.read(config), {tensor.name: tensor for tensor in catalog.tensors}, adapter.weight)
    values = numbers.adapter(small, *_demands(work.plan, adapter.index), seed)
    if (real / adapter_files.SAFE).is_file():
        _write(out / adapter_files.SAFE, catalog, lambda tensor: numbers.encoded(values[tensor.name], tensor.dtype))
    else:
        torch.save({name: values[name].to(numbers.STORED[dtype]) for name, dtype, _ in specs}, out / adapter_files.PICKLE)
    if side_files.tokenizer(real):
        write_tokenizer(out)


def _demands(plan: Plan, index: int) -> tuple[dict[str, tuple[str, bool]], list[str]]:
    """(tensor → the one whose numbers it must repeat, transposed perhaps; those that must be zero) of one adapter."""
    pairs = {pair.second.tensor.name: (pair.first.tensor.name, pair.transposed) for pair in plan.equal if pair.second.index == index}
    return pairs, [read.tensor.name for read in plan.zero if read.index == index]


def _refuse_other_work(real: Plan, twin: Merge) -> None:
    """Raises MergeError unless the twin's plan does to every tensor what the real one does."""
    try:
        small = set(_deeds(twin.plan.operations))
    except MergeError as error:
        raise MergeError(f"the twin's dimensions do not fit together, so that nothing can be tried on it: {error}") from error
    other = [deed for deed in _deeds(real.operations) if deed not in small]
    if other:
        raise MergeError(f"the twin's plan does not do what the real one does, first to {other[0][0]}. {NOTHING_WRITTEN}")


def _deeds(operations: Iterable[Any]) -> list[tuple[Any, ...]]:
    return [(o.target.name, o.target.dtype, o.kind, o.passes, tuple(type(part).__name__ for part in o.parts)) for o in operations]


def _put(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
