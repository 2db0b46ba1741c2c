"""Ways in which a base and an adapter arrive damaged."""

import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Q = "base_model.model.model.layers.0.self_attn.q_proj"


@dataclass
class Room:
    """Copies of a base and an adapter that a test may damage."""

    base: Path
    adapter: Path
    out: Path

    @property
    def shard(self) -> Path:
        return min(self.base.glob("*.safetensors"))

    def config(self, **changed: Any) -> None:
        path = self.adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    def unknown(self) -> None:
        (self.base / "config.json").write_text('{"architectures": ["NobodyForCausalLM"], "model_type": "nobody"}')

    def tensors(self, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        path = self.adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    def index(self, change: Callable[[dict[str, str]], object]) -> None:
        path = self.base / "model.safetensors.index.json"
        data = json.loads(path.read_text())
        change(data["weight_map"])
        path.write_text(json.dumps(data))

    def header(self, change: Callable[[dict[str, Any]], bytes | None]) -> None:
        raw = self.shard.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        entries = json.loads(raw[8 : 8 + length])
        new = change(entries) or json.dumps(entries).encode()
        self.shard.write_bytes(struct.pack("<Q", len(new)) + new + raw[8 + length :])


def first(entries: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in entries.items() if name != "__metadata__")


def overlap(entries: dict[str, Any]) -> None:
    second = sorted((e["data_offsets"], name) for name, e in entries.items() if name != "__metadata__")[1][1]
    entries[second]["data_offsets"] = [n - 2 for n in entries[second]["data_offsets"]]


def repeated(entries: dict[str, Any]) -> bytes:
    name = next(name for name in entries if name != "__metadata__")
    return json.dumps(entries).encode()[:-1] + f', "{name}": {json.dumps(entries[name])}}}'.encode()


def huge(room: Room) -> None:
    raw = room.shard.read_bytes()
    room.shard.write_bytes(struct.pack("<Q", 200_000_000) + raw[8:])


def truncate(room: Room) -> None:
    room.shard.write_bytes(room.shard.read_bytes()[:-10])


def nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{Q}.lora_A.weight"][0, 0] = float("nan")


def rank(tensors: dict[str, torch.Tensor]) -> None:
    for half, axis in (("lora_A", 0), ("lora_B", 1)):
        name = f"{Q}.{half}.weight"
        tensors[name] = torch.cat([tensors[name]] * 2, axis)


def legacy(room: Room) -> None:
    tensors = load_file(room.adapter / "adapter_model.safetensors")
    (room.adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, room.adapter / "adapter_model.bin", _use_new_zipfile_serialization=False)


def evil_pickle(room: Room) -> None:
    (room.adapter / "adapter_model.safetensors").unlink()
    torch.save({"a": Path}, room.adapter / "adapter_model.bin")


def compressed(room: Room) -> None:
    as_pickle(room)
    path = room.adapter / "adapter_model.bin"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def as_pickle(room: Room) -> None:
    tensors = load_file(room.adapter / "adapter_model.safetensors")
    (room.adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, room.adapter / "adapter_model.bin")


def far_token(room: Room) -> None:
    path = room.base / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append({"id": 99_999, "content": "<far>", "special": True})
    path.write_text(json.dumps(content))


def other_model(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        tensors[name.replace("self_attn", "attention")] = tensors.pop(name)


def wider(tensors: dict[str, torch.Tensor]) -> None:
    for name in list(tensors):
        if name.endswith("lora_A.weight"):
            tensors[name] = torch.cat([tensors[name]] * 2, 1)
