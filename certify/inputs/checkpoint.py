"""A checkpoint directory as a loader sees it: the index, the files it names, and the tensors in them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from sys import intern
from typing import Any

from certify.errors import DamagedError
from certify.inputs.digests import Digests
from certify.inputs.folder import visible_files
from certify.inputs.header import Header, read_header
from certify.inputs.stored import Stored
from certify.inputs.strict_json import read_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".ckpt", ".pkl", ".npz", ".onnx", ".distcp", ".ot")
PATH_MAX = 256  # characters; longer names are no file on any system that we read
EXPORT_FOLDERS = ("onnx", "original")  # other forms of the weights, which no loader of this directory reads


@dataclass(frozen=True)
class Checkpoint:
    """One directory, headers read.

    index_problems   sentences about the index file itself
    weight_map       tensor → file as the index says; for a single file, as its header says
    headers          per weight file that exists
    absent           weight files that the index names and that do not exist
    stray            other files that hold, or may hold, weights
    total_size       bytes of all tensors as the index states it; None where it states nothing
    index_dtype      the dtype that the index states, which transformers loads all tensors in where config.json states none; "" for none
    tensors          every tensor that can be found, in the file that the index names if it is there
    homes            the files that hold a tensor of this name
    """

    directory: Path
    sharded: bool
    index_problems: tuple[str, ...]
    weight_map: dict[str, str]
    headers: dict[str, Header]
    absent: tuple[str, ...]
    stray: tuple[str, ...]
    total_size: int | None
    index_dtype: str
    tensors: dict[str, Stored]
    homes: dict[str, tuple[str, ...]]

    def file_of(self, name: str) -> str:
        """The weight file of a tensor; where it should be if it is nowhere."""
        return self._names[self.tensors[name].path] if name in self.tensors else self.weight_map.get(name, "")

    @cached_property
    def _names(self) -> dict[Path, str]:
        return {self.directory / file: file for file in self.headers}

    @property
    def weight_files(self) -> tuple[str, ...]:
        return tuple(sorted({*self.headers, *self.absent}))


def open_checkpoint(directory: Path, digests: Digests | None = None) -> Checkpoint:
    """Reads the index and every header; `digests` will see what is read of the tensors. Never raises for what the directory holds."""
    present = visible_files(directory)
    sharded = INDEX in present or (directory / INDEX).is_symlink() or SINGLE not in present
    problems: list[str] = []
    weight_map: dict[str, str] = {}
    total_size: int | None = None
    stated = ""
    if sharded:
        try:
            weight_map, total_size, stated, problems = _index(read_object(directory / INDEX))
        except DamagedError as error:
            problems = [str(error)]
    named = sorted(set(weight_map.values())) if sharded else [SINGLE]
    headers = {name: read_header(directory / name) for name in named if (directory / name).is_file()}
    if not sharded:
        weight_map = dict.fromkeys(headers[SINGLE].entries, SINGLE)
    homes: dict[str, tuple[str, ...]] = {}
    for file, header in headers.items():
        alone = (file,)  # one object for all tensors of a file: there are 92,000
        for name in header.entries:
            homes[name] = (*homes[name], file) if name in homes else alone
    paths = {file: directory / file for file in headers}
    tensors = {
        name: Stored(paths[home], headers[home].entries[name], digests)
        for name, files in homes.items()
        for home in [weight_map[name] if weight_map.get(name) in files else files[0]]
    }
    stray = tuple(name for name in present if name not in named and _may_hold_weights(name))
    absent = tuple(name for name in named if name not in headers)
    return Checkpoint(directory, sharded, tuple(problems), weight_map, headers, absent, stray, total_size, stated, tensors, homes)


def _may_hold_weights(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in WEIGHT_SUFFIXES or path.parts[0] in EXPORT_FOLDERS


def _index(index: dict[str, Any]) -> tuple[dict[str, str], int | None, str, list[str]]:
    """(weight map without unsafe entries, total_size, dtype, problems)."""
    stated = index.get("weight_map")
    if not isinstance(stated, dict) or not stated:
        return {}, None, "", ["the index has no weight_map" if stated is None else "the weight_map of the index is empty or no object"]
    unsafe = sorted({str(file) for file in stated.values() if not _inside(file)})
    problems = [f"the weight_map names {file!r}, which is no file below this directory" for file in unsafe]
    metadata = index.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if total is not None and type(total) is not int:
        problems.append(f"total_size is {total!r}, not a whole number")
        total = None
    dtype = str(metadata["dtype"]) if isinstance(metadata, dict) and "dtype" in metadata else ""
    return {intern(name): intern(file) for name, file in stated.items() if _inside(file)}, total, dtype, problems


def _inside(file: object) -> bool:
    """A plain relative path that stays below the directory it is relative to."""
    if not isinstance(file, str) or not 0 < len(file) < PATH_MAX or "\\" in file or "\0" in file:
        return False
    path = PurePosixPath(file)
    return not path.is_absolute() and ".." not in path.parts and path.suffix == ".safetensors"
