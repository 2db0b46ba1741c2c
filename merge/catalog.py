"""Header bytes ⇄ `Catalog`: what a safetensors file says that it holds, with hostile headers refused.

Source: the safetensors format, https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON, data).
"""

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from merge.errors import CheckpointError

HEADER_MAX = 100_000_000  # bytes; the safetensors library refuses longer headers
LENGTH_BYTES = 8
DIMENSION_MAX = 1 << 48  # no dimension of a tensor on any disk; Python's integers know no limit

ITEM_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    dtype        the format's own name, e.g. "BF16"
    file         name of the shard, relative to the checkpoint's directory
    start, stop  bytes from the beginning of the *file*
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Stored bytes."""
        return self.stop - self.start

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.name}  {self.dtype} {self.shape}"


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything that one file's header says.

    tensors  in file order
    header   the leading bytes of the file, length included; the data begins behind them
    size     bytes of the whole file
    """

    file: str
    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]
    header: bytes
    size: int


def stored_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes that a tensor of this dtype and shape occupies; sub-byte dtypes are packed."""
    return -(-ITEM_BITS[dtype] * math.prod(shape) // 8)


def parse(file: str, header: bytes, size: int) -> Catalog:
    """The catalog of one file, from the JSON part of its header.

    header  the bytes after the 8-byte length      size  bytes of the whole file

    Raises CheckpointError if the header is not JSON, repeats a key, or describes ranges that overlap, leave holes,
    overrun the file or disagree with dtype and shape.
    """
    data_start = LENGTH_BYTES + len(header)
    try:
        entries = json.loads(header, object_pairs_hook=lambda pairs: _without_repeats(file, pairs))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: the header is not valid JSON ({error})") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{file}: the header is a JSON {type(entries).__name__}, an object was expected")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{file}: __metadata__ must map strings to strings")
    tensors = sorted((_tensor(file, name, entry, data_start) for name, entry in entries.items()), key=lambda t: (t.start, t.stop))
    _refuse_gaps(file, tensors, data_start, size)
    return Catalog(file, tuple(tensors), metadata, struct.pack("<Q", len(header)) + header, size)


def header_length(file: str, first: bytes, size: int) -> int:
    """Length of the JSON header from a file's first eight bytes; refuses what cannot be a safetensors file."""
    if len(first) < LENGTH_BYTES:
        raise CheckpointError(f"{file}: {size} bytes, too short for a safetensors file")
    length: int = struct.unpack("<Q", first)[0]
    if length > HEADER_MAX:
        raise CheckpointError(f"{file}: the header claims {length:,} bytes, more than the format's limit of {HEADER_MAX:,}")
    if LENGTH_BYTES + length > size:
        raise CheckpointError(f"{file}: the header claims {length:,} bytes, the file has {size:,}: it is truncated")
    return length


def compose(file: str, wanted: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> Catalog:
    """The catalog of a new file holding these tensors in this order; its header is padded to 8 bytes.

    wanted  (name, dtype, shape) in file order
    """
    entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    ranges, offset = [], 0
    for name, dtype, shape in wanted:
        stop = offset + stored_bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        ranges.append((name, dtype, shape, offset, stop))
        offset = stop
    raw = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    start = LENGTH_BYTES + len(raw)
    tensors = tuple(Tensor(name, dtype, shape, file, start + low, start + high) for name, dtype, shape, low, high in ranges)
    return Catalog(file, tensors, metadata, struct.pack("<Q", len(raw)) + raw, start + offset)


def _without_repeats(file: str, pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise CheckpointError(f"{file}: the header names {key!r} twice")
        found[key] = value
    return found


def _tensor(file: str, name: str, entry: object, data_start: int) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(low), int(high)]}:
            pass
        case _:
            raise CheckpointError(f"{file}: {name!r} has no dtype, shape and data_offsets that can be read")
    if dtype not in ITEM_BITS:
        raise CheckpointError(f"{file}: {name!r} has the unknown dtype {dtype!r}")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < DIMENSION_MAX for n in shape):
        raise CheckpointError(f"{file}: {name!r} has an impossible shape")
    if not 0 <= low <= high or high - low != stored_bytes(dtype, shape):
        raise CheckpointError(
            f"{file}: {name!r} occupies bytes {low}…{high}, but {dtype} {tuple(shape)} needs {stored_bytes(dtype, shape)} bytes"
        )
    return Tensor(name, dtype, tuple(shape), file, data_start + low, data_start + high)


def _refuse_gaps(file: str, tensors: list[Tensor], start: int, size: int) -> None:
    for tensor in tensors:
        if tensor.start != start:
            kind = "overlaps the tensor before it" if tensor.start < start else "leaves a hole before it"
            raise CheckpointError(f"{file}: {tensor.name!r} at byte {tensor.start} {kind} (expected {start})")
        start = tensor.stop
    if start != size:
        kind = "it is truncated" if start > size else "there are bytes that belong to no tensor"
        raise CheckpointError(f"{file}: the header describes {start:,} bytes, the file has {size:,}: {kind}")
