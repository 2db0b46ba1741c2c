"""The header of one safetensors file: which bytes are which tensor, and everything that is wrong about it.

Format: 8 bytes little-endian length n, n bytes of JSON {name: {dtype, shape, data_offsets: [start, stop]}}, then the data.
The tensors tile the data without hole or overlap (github.com/huggingface/safetensors, README "Format").
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from sys import intern
from typing import Any

from certify.errors import DamagedError
from certify.inputs.dtypes import BITS
from certify.inputs.strict_json import parse_object

HEADER_MAX = 100_000_000  # bytes, the limit of the reference implementation
LENGTH = 8  # bytes of the length field


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor as a header describes it; `start` and `stop` count from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """entries: tensors whose description makes sense by itself. problems: sentences with byte offsets; empty for a sound file.

    format: whose tensors they are, as the file says ("pt", "tf" …); version 4 of transformers loads them accordingly
    """

    entries: dict[str, Entry]
    problems: tuple[str, ...]
    size: int
    format: str = ""


def read_header(path: Path) -> Header:
    """The header of one file. Never raises for what the file holds: whatever is wrong becomes a problem."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            declared = file.read(LENGTH)
            if len(declared) < LENGTH:
                return Header({}, (f"byte 0: {size} bytes are too few for a safetensors file",), size)
            length = int.from_bytes(declared, "little")
            if length > HEADER_MAX:
                return Header({}, (f"byte 0: the header claims {length:,} bytes; the format allows {HEADER_MAX:,}",), size)
            if LENGTH + length > size:
                return Header({}, (f"byte 0: the header claims {length:,} bytes; the file has {size - LENGTH:,} after its length",), size)
            described, repeated = parse_object(file.read(length))
    except OSError as error:
        return Header({}, (f"cannot be read: {error.strerror or error}",), 0)
    except DamagedError as error:
        return Header({}, (f"byte {LENGTH}: the header is {error}",), size)
    return _judge(described, repeated, LENGTH + length, size)


def _judge(described: dict[str, Any], repeated: list[str], data: int, size: int) -> Header:
    problems = [f"byte {LENGTH}: the header holds the key {name!r} twice" for name in repeated]
    metadata = described.pop("__metadata__", {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        problems.append(f"byte {LENGTH}: __metadata__ is not a map of strings")
    entries: dict[str, Entry] = {}
    for name, fields in described.items():
        try:
            entries[intern(name)] = _entry(name, fields, data)
        except DamagedError as error:
            problems.append(f"byte {LENGTH}: tensor {name!r}: {error}")
    problems += _tiling(list(entries.values()), data, size)
    return Header(entries, tuple(problems), size, str(metadata.get("format", "")) if isinstance(metadata, dict) else "")


def _entry(name: str, fields: Any, data: int) -> Entry:
    """One description, checked by itself: known dtype, natural numbers, bytes = shape × dtype."""
    match fields:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, stop]}:
            pass
        case _:
            raise DamagedError("its description lacks dtype, shape or data_offsets")
    if dtype not in BITS:
        raise DamagedError(f"unknown dtype {dtype!r}")
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, start, stop)):
        raise DamagedError(f"shape {shape} and offsets [{start}, {stop}] are not natural numbers")
    needed = math.prod(shape) * BITS[dtype]
    if start > stop or (stop - start) * 8 != needed:
        raise DamagedError(f"{dtype} {shape} needs {needed / 8:,g} bytes; data_offsets [{start}, {stop}] span {stop - start:,}")
    return Entry(intern(name), intern(dtype), _shared(tuple(shape)), data + start, data + stop)


@lru_cache(maxsize=4096)
def _shared(shape: tuple[int, ...]) -> tuple[int, ...]:
    """One object for all tensors of a shape: there are 92,000, of a few shapes."""
    return shape


def _tiling(entries: list[Entry], data: int, size: int) -> list[str]:
    """Where the tensors overlap, leave holes, overrun the file or stop before its end."""
    ordered = sorted(entries, key=lambda entry: (entry.start, entry.stop))
    problems = []
    if ordered and ordered[0].start != data:
        problems.append(f"byte {data}: {ordered[0].start - data:,} bytes before the first tensor belong to none")
    for before, after in pairwise(ordered):
        if after.start < before.stop:
            problems.append(f"byte {after.start}: tensor {after.name!r} overlaps {before.name!r} by {before.stop - after.start:,} bytes")
        elif after.start > before.stop:
            problems.append(f"byte {before.stop}: {after.start - before.stop:,} bytes after {before.name!r} belong to no tensor")
    end = max((entry.stop for entry in entries), default=data)
    if end > size:
        problems.append(f"byte {size}: the file ends here; its tensors need {end:,} bytes ({end - size:,} are missing)")
    elif end < size:
        problems.append(f"byte {end}: {size - end:,} bytes after the last tensor belong to none")
    return problems
