"""One tensor on disk, read piece by piece: memory is a block, never a tensor."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from certify.errors import DamagedError
from certify.grid import Grid
from certify.inputs.digests import Digests
from certify.inputs.dtypes import FLOATS
from certify.inputs.header import Entry

BLOCK_BYTES = 1 << 20  # stored bytes per block; the float64 twin of a BF16 block has 4 MiB


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a safetensors file: where it lies and what it is; `digests` sees what is read of it."""

    path: Path
    entry: Entry
    digests: Digests | None = field(default=None, repr=False, compare=False)

    @property
    def dtype(self) -> str:
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def numbers(self) -> torch.dtype | None:
        """The dtype in which its numbers are read; None where this version computes with none of them."""
        return FLOATS.get(self.dtype)

    @property
    def decoded(self) -> bool:
        """Whether its numbers are worked out of others."""
        return False

    def grid(self, numbers: Sequence[int]) -> Grid:  # noqa: ARG002 where numbers are codes it matters which rows are asked for
        """What can stand in some rows of it, seen as a matrix."""
        return Grid(FLOATS[self.dtype])

    def described(self) -> str:
        return f"{self.dtype} {self.shape}"

    def raw(self) -> Iterator[bytes]:
        """The stored bytes, BLOCK_BYTES at a time. Raises DamagedError where the file ends early."""
        with _Opened(self.path, self.digests) as file:
            for start in range(self.entry.start, self.entry.stop, BLOCK_BYTES):
                yield file.read(start, min(BLOCK_BYTES, self.entry.stop - start))

    def elements(self, step: int) -> Iterator[torch.Tensor]:
        """The tensor flattened, `step` elements at a time, in its stored float dtype. Raises DamagedError where the file ends early."""
        return self.spans(min(step, self.entry.elements - first) for first in range(0, self.entry.elements, step))

    def spans(self, counts: Iterable[int]) -> Iterator[torch.Tensor]:
        """The tensor flattened, in pieces of so many elements each. Raises DamagedError where the file ends early."""
        return self.pieces(counts, FLOATS[self.dtype])

    def pieces(self, counts: Iterable[int], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """The same, read as elements of a dtype that is as wide as the stored one."""
        first = 0
        with _Opened(self.path, self.digests) as file:
            for count in counts:
                data = file.read(self.entry.start + first * dtype.itemsize, count * dtype.itemsize)
                yield torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)
                first += count

    def rows(self, numbers: Iterable[int]) -> torch.Tensor:
        """Some rows of a matrix, in their stored float dtype. Raises DamagedError where the file ends early."""
        dtype, columns = FLOATS[self.dtype], self.shape[1]
        return torch.frombuffer(self.raw_rows(numbers, columns * dtype.itemsize), dtype=dtype).view(-1, columns)

    def raw_rows(self, numbers: Iterable[int], step: int) -> bytearray:
        """The stored bytes of some rows of `step` bytes each."""
        with _Opened(self.path, self.digests) as file:
            return bytearray().join(file.read(self.entry.start + number * step, step) for number in numbers)

    def load(self) -> torch.Tensor:
        """The whole tensor: for adapters, whose tensors are thin."""
        parts = list(self.elements(max(self.entry.elements, 1)))
        return (parts[0] if parts else torch.empty(0, dtype=FLOATS[self.dtype])).reshape(self.shape)


class _Opened:
    """A file read by position; `pread` needs no seek and shares no state."""

    def __init__(self, path: Path, digests: Digests | None) -> None:
        self._path, self._digests = path, digests

    def __enter__(self) -> "_Opened":
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY)
        except OSError as error:
            raise DamagedError(f"{self._path.name} cannot be opened: {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def read(self, start: int, count: int) -> bytes:
        pieces, have = [], 0
        while have < count:
            try:
                piece = os.pread(self._descriptor, count - have, start + have)
            except (OSError, OverflowError) as error:
                raise DamagedError(f"{self._path.name} cannot be read at byte {start + have:,}: {error}") from error
            if not piece:
                raise DamagedError(f"{self._path.name} ends at byte {start + have:,}; {count - have:,} more bytes were expected")
            pieces.append(piece)
            have += len(piece)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._digests is not None:
            self._digests.saw(self._path, start, data)
        return data
