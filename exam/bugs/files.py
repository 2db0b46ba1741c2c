"""Bugs in reading and writing: base, adapter, shards, and what stands beside them."""

import json
from pathlib import Path
from typing import Any

import pytest

from exam.bugs.registry import bug
from merge import adapter_files, catalog, shards, side_files, source, task
from merge.sink import Sink
from merge.source import Reader


@bug("adapter_files", "deepseek views", "in a pickle, a view is read from the start of its storage")
def views_read_from_the_start(patch: pytest.MonkeyPatch) -> None:
    original = adapter_files._located

    def located(key: str, value: Any, file: str) -> Any:
        found = original(key, value, file)
        start = value.untyped_storage()._checkpoint_offset
        return catalog.Tensor(key, found.dtype, found.shape, file, start, start + found.size)

    patch.setattr(adapter_files, "_located", located)


@bug("source", "llama", "reads of the base begin two bytes too late")
def reads_two_bytes_late(patch: pytest.MonkeyPatch) -> None:
    original = Reader.into

    def into(reader: Reader, file: str, start: int, view: memoryview) -> None:
        late = 2 if file.startswith("model") and start + 2 + len(view) <= reader.size(file) else 0
        original(reader, file, start + late, view)

    patch.setattr(Reader, "into", into)


@bug("source", "llama", "only the first shard is opened", stopped=True)
def only_the_first_shard(patch: pytest.MonkeyPatch) -> None:
    original = source.read_base
    patch.setattr(source, "read_base", lambda folder: original(folder)[:1])


@bug("catalog", "llama → fp32", "shapes are written the other way round")
def shapes_reversed(patch: pytest.MonkeyPatch) -> None:
    original = shards.compose
    patch.setattr(shards, "compose", lambda file, wanted, metadata: original(file, [(n, d, s[::-1]) for n, d, s in wanted], metadata))


@bug("catalog", "llama → fp32", "the bytes follow the names in reverse, the header in the file's order")
def two_orders(patch: pytest.MonkeyPatch) -> None:
    original = shards.compose

    def composed(file: str, wanted: Any, metadata: Any) -> Any:
        made = original(file, wanted[::-1], metadata)
        header = original(file, wanted, metadata).header
        places = {tensor.name: tensor for tensor in made.tensors}
        return catalog.Catalog(file, tuple(places[name] for name, _, _ in wanted), metadata, header, made.size)

    patch.setattr(shards, "compose", composed)


@bug("sink", "llama", "the rest of a short write is not written")
def short_writes(patch: pytest.MonkeyPatch) -> None:
    original = Sink.write
    patch.setattr(Sink, "write", lambda sink, descriptor, data, start: original(sink, descriptor, data[: len(data) // 2], start))


@bug("sink", "llama", "a shard is written twice where there should be two")
def one_shard_twice(patch: pytest.MonkeyPatch) -> None:
    original = Sink.commit

    def commit(sink: Sink, file: str, descriptor: int) -> None:
        first = sorted(path for path in sink.out.glob("model-*.safetensors"))
        if first and file.endswith(".safetensors"):
            sink._partial(file).write_bytes(first[0].read_bytes())
        original(sink, file, descriptor)

    patch.setattr(Sink, "commit", commit)


@bug("engine", "llama", "the index is forgotten")
def index_forgotten(patch: pytest.MonkeyPatch) -> None:
    original = Sink.whole
    patch.setattr(Sink, "whole", lambda sink, file, data: None if file == source.INDEX else original(sink, file, data))


@bug("task", "llama → fp32", "config.json is carried though the dtype is another")
def config_carried(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(task.side_files, "config", lambda path, *_: path.read_bytes())


@bug("side_files", "llama → fp32", "config.json is written from its defaults: the head is tied")
def config_from_defaults(patch: pytest.MonkeyPatch) -> None:
    original = side_files.config

    def config(path: Path, *given: Any) -> bytes:
        return json.dumps(json.loads(original(path, *given)) | {"tie_word_embeddings": True}).encode()

    patch.setattr(side_files, "config", config)


@bug("side_files", "llama stale file", "the base's stale weight files are carried")
def stale_files_carried(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(side_files, "_is_weight", lambda _: False)


@bug("side_files", "llama", "generation_config.json is forgotten")
def generation_config_forgotten(patch: pytest.MonkeyPatch) -> None:
    original = Sink.carry
    patch.setattr(Sink, "carry", lambda sink, file, path: None if file == "generation_config.json" else original(sink, file, path))
