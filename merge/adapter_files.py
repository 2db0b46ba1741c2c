"""An adapter's directory → headers and configuration: `adapter_model.safetensors`, or the pickle `adapter_model.bin`.

A pickle is unpickled without its numbers (torch's fake mode, weights only), which gives every tensor's byte range in the zip
archive: both kinds are then read the same way, range by range.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from merge.catalog import Tensor
from merge.errors import NOTHING_WRITTEN, AdapterError, CheckpointError
from merge.source import read_catalog, read_json

SAFE, PICKLE, CONFIG = "adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"
ZIP_MAGIC = b"PK\x03\x04"
STORED = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def read_adapter(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Tensor]]:
    """(adapter_config.json, headers by tensor name) of one adapter; raises AdapterError if the directory does not hold one."""
    if not folder.is_dir():
        raise AdapterError(f"{folder}: there is no such directory. {NOTHING_WRITTEN}")
    try:
        config = read_json(folder / CONFIG)
        if not isinstance(config, dict):
            raise AdapterError(f"{folder / CONFIG}: a JSON object was expected. {NOTHING_WRITTEN}")
        return config, _tensors(folder)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error


def _weights_file(folder: Path) -> str:
    """The name of the file that holds the adapter's tensors."""
    found = [name for name in (SAFE, PICKLE) if (folder / name).is_file()]
    if not found:
        raise AdapterError(f"{folder}: neither {SAFE} nor {PICKLE} is there. {NOTHING_WRITTEN}")
    return found[0]


def _tensors(folder: Path) -> Mapping[str, Tensor]:
    name = _weights_file(folder)
    if name == SAFE:
        return {tensor.name: tensor for tensor in read_catalog(folder, name).tensors}
    with (folder / name).open("rb") as stream:
        if stream.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            raise AdapterError(
                f"{folder / name} is a pickle of the format before torch 1.6, unreadable in parts. Convert it where you trust it:\n"
                f"  python -c \"import torch; p = '{name}'; torch.save(torch.load(p, weights_only=True), p)\"\n{NOTHING_WRITTEN}"
            )
    _refuse_other_archives(folder / name)
    from torch._subclasses.fake_tensor import FakeTensorMode  # half a second of imports that only a pickle needs

    try:
        with FakeTensorMode():
            state = torch.load(folder / name, weights_only=True)
    except Exception as error:  # a pickle can be wrong in as many ways as there are objects
        raise AdapterError(f"{folder / name}: not a file of plain tensors ({str(error).splitlines()[0]}). {NOTHING_WRITTEN}") from error
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items()):
        raise AdapterError(f"{folder / name}: a dictionary of tensors was expected. {NOTHING_WRITTEN}")
    return {key: _located(key, value, name) for key, value in state.items()}


def _refuse_other_archives(path: Path) -> None:
    """Raises AdapterError unless the archive stores its members uncompressed and little-endian, as torch.save does."""
    try:
        with zipfile.ZipFile(path) as archive:
            order = next((archive.read(member) for member in archive.namelist() if member.endswith("/byteorder")), b"little")
            compressed = [member.filename for member in archive.infolist() if member.compress_type != zipfile.ZIP_STORED]
    except (zipfile.BadZipFile, OSError) as error:
        raise AdapterError(f"{path}: a damaged archive ({error}). {NOTHING_WRITTEN}") from error
    if compressed or order != b"little":
        raise AdapterError(f"{path}: compressed or big-endian; save the adapter as {SAFE}. {NOTHING_WRITTEN}")


def _located(key: str, value: Any, file: str) -> Tensor:
    """Where a tensor's bytes lie in the archive: its storage's place, which torch records in fake mode, and its own offset."""
    dtype = STORED.get(value.dtype)
    if dtype is None or not value.is_contiguous():
        problem = f"stored as {value.dtype}" if dtype is None else "not stored contiguously"
        raise AdapterError(f"{file}: {key} is {problem}; save the adapter as {SAFE}. {NOTHING_WRITTEN}")
    start = value.untyped_storage()._checkpoint_offset + value.storage_offset() * value.element_size()
    return Tensor(key, dtype, tuple(value.shape), file, start, start + value.numel() * value.element_size())
