"""Damage to weight files, their headers and their index."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from exam.cases import INDEX, Case, read, write
from exam.faults.registry import in_files
from exam.grid import own_base

SHARD = "model-*"


def shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("model*.safetensors"))


def rewrite_index(case: Case, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((case.merged / INDEX).read_text())
    change(index)
    (case.merged / INDEX).write_text(json.dumps(index))


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The header as JSON, changed; the data stay as they are."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


def entries(header: dict[str, Any]) -> list[dict[str, Any]]:
    """In the order of the data."""
    return sorted((held for name, held in header.items() if name != "__metadata__"), key=lambda held: held["data_offsets"])


@in_files("deepseek", C1=SHARD)
def shard_truncated(case: Case) -> None:
    path = shards(case.merged)[0]
    path.write_bytes(path.read_bytes()[:-100])


@in_files("deepseek", C1=SHARD)
def shard_cut_to_its_header(case: Case) -> None:
    path = shards(case.merged)[0]
    path.write_bytes(path.read_bytes()[: 8 + int.from_bytes(path.read_bytes()[:8], "little")])


@in_files("deepseek", C1=SHARD)
def shard_empty(case: Case) -> None:
    shards(case.merged)[0].write_bytes(b"")


@in_files("deepseek", C1=SHARD)
def bytes_after_the_last_tensor(case: Case) -> None:
    path = shards(case.merged)[0]
    path.write_bytes(path.read_bytes() + b"\0" * 64)


@in_files("deepseek", C1=SHARD)
def header_is_no_json(case: Case) -> None:
    path = shards(case.merged)[0]
    raw = bytearray(path.read_bytes())
    raw[20] = 0xFF
    path.write_bytes(raw)


@in_files("deepseek", C1=SHARD)
def header_length_beyond_the_file(case: Case) -> None:
    path = shards(case.merged)[0]
    path.write_bytes((1 << 40).to_bytes(8, "little") + path.read_bytes()[8:])


@in_files("deepseek", C1=SHARD)
def two_tensors_overlap(case: Case) -> None:
    def overlap(header: dict[str, Any]) -> None:
        first, second = entries(header)[:2]
        size = second["data_offsets"][1] - second["data_offsets"][0]
        second["data_offsets"] = [first["data_offsets"][1] - 2, first["data_offsets"][1] - 2 + size]

    rewrite_header(shards(case.merged)[0], overlap)


@in_files("deepseek", C1=SHARD)
def offsets_and_shape_disagree(case: Case) -> None:
    rewrite_header(shards(case.merged)[0], lambda header: entries(header)[0]["shape"].append(2))


@in_files("deepseek", C1=SHARD)
def unknown_dtype_in_a_header(case: Case) -> None:
    rewrite_header(shards(case.merged)[0], lambda header: entries(header)[0].update(dtype="BF17"))


@in_files("deepseek", C1=SHARD)
def key_twice_in_one_header(case: Case) -> None:
    path = shards(case.merged)[0]
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    name = next(name for name in header if name != "__metadata__")
    text = raw[8 : 8 + length].rstrip()[:-1] + f",{json.dumps(name)}:{json.dumps(header[name])}}}".encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@in_files("deepseek", C1=SHARD, seen="unsloth#1122, zoo#35, axolotl#1267: 87 GB became 14 GB")
def shard_missing(case: Case) -> None:
    shards(case.merged)[-1].unlink()


@in_files("deepseek", C1=INDEX, C2="*", seen="axolotl#1267")
def index_missing(case: Case) -> None:
    (case.merged / INDEX).unlink()


@in_files("deepseek", C1=INDEX)
def index_is_no_json(case: Case) -> None:
    (case.merged / INDEX).write_text((case.merged / INDEX).read_text()[:-10])


@in_files("deepseek", C1=SHARD)
def index_names_a_wrong_shard(case: Case) -> None:
    def exchange(index: dict[str, Any]) -> None:
        files = sorted(set(index["weight_map"].values()))
        key = next(key for key, file in index["weight_map"].items() if file == files[0])
        index["weight_map"][key] = files[1]

    rewrite_index(case, exchange)


@in_files("deepseek", C1=SHARD)
def index_leaves_a_tensor_out(case: Case) -> None:
    rewrite_index(case, lambda index: index["weight_map"].popitem())


@in_files("deepseek", C1=INDEX)
def index_names_a_file_outside_the_directory(case: Case) -> None:
    def lead_out(index: dict[str, Any]) -> None:
        index["weight_map"] = {key: f"../merged/{file}" for key, file in index["weight_map"].items()}

    rewrite_index(case, lead_out)


@in_files("deepseek", C1=INDEX)
def total_size_is_wrong(case: Case) -> None:
    rewrite_index(case, lambda index: index["metadata"].update(total_size=index["metadata"]["total_size"] + 2))


@in_files("deepseek", C1=SHARD, seen="syv-ai/qwen38-27b#123: the loader takes the last")
def tensor_in_two_shards(case: Case) -> None:
    first, second = shards(case.merged)[:2]
    key, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {key: tensor + 1}, second, metadata={"format": "pt"})


@in_files("deepseek", C1="consolidated.safetensors")
def stray_consolidated_file(case: Case) -> None:
    save_file({"x": torch.zeros(2)}, case.merged / "consolidated.safetensors")


@in_files("deepseek", C1="pytorch_model.bin")
def stray_pickle(case: Case) -> None:
    torch.save({"x": torch.zeros(2)}, case.merged / "pytorch_model.bin")


@in_files("deepseek", C1="model-00099.safetensors")
def stray_shard_of_an_older_run(case: Case) -> None:
    shutil.copy(shards(case.merged)[0], case.merged / "model-00099.safetensors")


@in_files("deepseek", C1="model.safetensors")
def single_file_beside_the_shards(case: Case) -> None:
    """A loader that finds model.safetensors never looks at the index."""
    save_file({"lm_head.weight": torch.zeros(2, 2)}, case.merged / "model.safetensors", metadata={"format": "pt"})


@in_files("deepseek", C1="adapter_model.safetensors")
def adapter_left_in_the_merged_directory(case: Case) -> None:
    """transformers applies an adapter that it finds beside a model: it would be merged twice."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(case.adapter / name, case.merged / name)


@in_files("deepseek", C1="consolidated.safetensors", C4="*_proj.weight")
def merge_only_in_a_stray_file(case: Case) -> None:
    held = {key: tensor for tensors in read(case.merged).values() for key, tensor in tensors.items()}
    write(case.merged, read(case.base))
    save_file(held, case.merged / "consolidated.safetensors")


@in_files("deepseek", C1="adapter: adapter_model.safetensors")
def adapter_truncated(case: Case) -> None:
    path = case.adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@in_files("deepseek", C1="adapter: adapter_config.json")
def adapter_configuration_is_no_json(case: Case) -> None:
    (case.adapter / "adapter_config.json").write_text("{")


@in_files("deepseek", C1="base: model-*")
def shard_of_the_base_truncated(case: Case) -> None:
    own_base(case)
    path = shards(case.base)[0]
    path.write_bytes(path.read_bytes()[:-100])
