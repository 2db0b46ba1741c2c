"""All reading: headers, configurations, and byte ranges of base shards and adapter files."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from merge.catalog import LENGTH_BYTES, Catalog, header_length, parse
from merge.errors import NOTHING_WRITTEN, CheckpointError, MergeError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HASH_BLOCK = 1 << 22  # bytes per read while hashing
Stamp = tuple[int, int, int]  # size, mtime in ns, inode


def read_json(path: Path) -> Any:
    """One JSON file; raises CheckpointError naming it."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}). {NOTHING_WRITTEN}") from error


def read_catalog(folder: Path, file: str) -> Catalog:
    """The catalog of one safetensors file."""
    path = folder / file
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return parse(file, stream.read(header_length(file, stream.read(LENGTH_BYTES), size)), size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}). {NOTHING_WRITTEN}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{error}. {NOTHING_WRITTEN}") from error


def read_base(folder: Path) -> tuple[Catalog, ...]:
    """The catalogs of all shards of a checkpoint, sorted by name; index and shards must agree about every tensor.

    Raises CheckpointError if a shard is missing or damaged, if the weight map leaves the directory, or if they disagree.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such directory. {NOTHING_WRITTEN}")
    if not (folder / INDEX).exists():
        if not (folder / SINGLE).exists():
            raise CheckpointError(f"{folder}: neither {INDEX} nor {SINGLE} is there. {NOTHING_WRITTEN}")
        return (read_catalog(folder, SINGLE),)
    index = read_json(folder / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{folder / INDEX}: no weight_map of tensor names to files. {NOTHING_WRITTEN}")
    files = sorted(set(weight_map.values()))
    outside = [file for file in files if Path(file).name != file or not file.endswith(".safetensors")]
    if outside:
        raise CheckpointError(f"{INDEX} names {outside[0]!r}, which is not a shard beside it. {NOTHING_WRITTEN}")
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise CheckpointError(f"{INDEX} names {len(absent)} missing files, first {absent[0]!r}. {NOTHING_WRITTEN}")
    catalogs = tuple(read_catalog(folder, file) for file in files)
    held = [(tensor.name, catalog.file) for catalog in catalogs for tensor in catalog.tensors]
    disagreement = sorted(set(held) ^ set(weight_map.items()))
    if disagreement or len(held) != len(weight_map):
        name, file = disagreement[0] if disagreement else held[0]
        count = len({name for name, _ in disagreement})
        raise CheckpointError(f"{INDEX} and the shards disagree about {count} tensors, first {name!r} in {file}. {NOTHING_WRITTEN}")
    return catalogs


class Reader:
    """Byte ranges of one folder's files, by position, through descriptors that are opened once.

    stamps  file → its stamp when the merge was planned; a file that has another one since is refused at its opening
    """

    def __init__(self, folder: Path, stamps: Mapping[str, Stamp] | None = None) -> None:
        self._folder = folder
        self._stamps = stamps or {}
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def into(self, file: str, start: int, view: memoryview) -> None:
        """Fill `view` with the bytes that begin at `start`; raises MergeError if the file is shorter."""
        descriptor, done = self._descriptor(file), 0
        while done < len(view):
            got = os.preadv(descriptor, [view[done:]], start + done)
            if not got:
                raise MergeError(f"{self._folder / file} ends at byte {start + done}: it changed since the merge began")
            done += got

    def size(self, file: str) -> int:
        """Bytes of a file as it is now."""
        return os.fstat(self._descriptor(file)).st_size

    def close(self) -> None:
        """Close every descriptor; raises MergeError if a file was changed while it was read."""
        changed = []
        while self._open:
            file, descriptor = self._open.popitem()
            if stamp(os.fstat(descriptor)) != self._stamps.get(file, stamp(os.fstat(descriptor))):
                changed.append(file)
            os.close(descriptor)
        if changed:
            raise MergeError(f"{self._folder / changed[0]} changed while it was read (size, modification time or inode)")

    def _descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._open:
                path = self._folder / file
                descriptor = self._open[file] = os.open(path, os.O_RDONLY)
                if stamp(os.fstat(descriptor)) != self._stamps.get(file, stamp(os.fstat(descriptor))):
                    raise MergeError(f"{path} changed since the merge began (size, modification time or inode)")
            return self._open[file]


def stamp(found: os.stat_result) -> Stamp:
    """What changes when a file does."""
    return found.st_size, found.st_mtime_ns, found.st_ino


def stamps(folder: Path) -> dict[str, Stamp]:
    """The stamps of a folder's files, by name; none where there is no folder."""
    return {path.name: stamp(path.stat()) for path in folder.iterdir() if path.is_file()} if folder.is_dir() else {}


def files_below(folder: Path) -> Iterator[Path]:
    """Every regular file below a folder, sorted; hidden files and folders (.git, .cache) are left out."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def sha256(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_digest(files: Mapping[str, str]) -> str:
    """sha256 of the sorted lines "sha256␠␠relative/path": one digest for a folder."""
    lines = sorted(f"{digest}  {name}\n" for name, digest in files.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()
