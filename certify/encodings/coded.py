"""A quantised tensor of a checkpoint, read as the numbers that it stands for: code × scale, a block of rows at a time.

The scale of element [i, j] of a matrix is scales[i // height, j // width]; the last block of an axis is as long as what is left of it. A
stack of matrices has a grid of scales for each. The scale may lie in another file than the codes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import torch
from torch import Tensor

from certify.encodings.declaration import ALL, BESIDE, Declaration
from certify.encodings.e4m3 import CODES, NUMBERS
from certify.grid import Grid
from certify.inputs.dtypes import FLOATS
from certify.inputs.stored import Stored

POWERS = ("F8_E8M0", "U8")  # bytes that are exponents: 2^(byte − 127), 255 is no number (OCP Microscaling Formats, E8M0)
HELD = 2  # the scales of so many tensors stay in memory


class Shelf:
    """The scales that were read last: of the base's tensor and of the merged one, say."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, coded: "Coded") -> Tensor:
        """(block rows of all matrices, block columns), float32. Raises DamagedError where a file ends early."""
        name = coded.entry.name
        if name not in self._held:
            while len(self._held) >= HELD:
                del self._held[next(iter(self._held))]
            self._held[name] = scales(coded.scale).view(-1, coded.across)
        return self._held[name]


@dataclass(frozen=True, slots=True)
class Coded(Stored):
    """Codes and what they are multiplied by. scale: its tensor      height, width: of what shares one, ALL for the whole of an axis"""

    scale: Stored = field(kw_only=True)
    height: int = field(kw_only=True)
    width: int = field(kw_only=True)
    shelf: Shelf = field(kw_only=True, repr=False, compare=False)

    @property
    def numbers(self) -> torch.dtype:
        return torch.float32

    @property
    def decoded(self) -> bool:
        return True

    @property
    def suffix(self) -> str:
        """What follows a weight's name in that of its scale."""
        return self.scale.entry.name.removeprefix(self.entry.name)

    @property
    def across(self) -> int:
        """Blocks beside each other."""
        return blocks(self.shape, (self.height, self.width))[-1]

    def spans(self, counts: Iterable[int]) -> Iterator[Tensor]:
        """The numbers, flattened, in pieces of so many elements each: code × scale, rounded to float32."""
        return (codes.mul_(scale) for codes, scale in self.factors(counts))

    def factors(self, counts: Iterable[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """(the codes' numbers, the scale of each), float32, flattened, in pieces of so many elements each."""
        columns, first, asked = self.shape[-1], 0, list(counts)
        for count, codes in zip(asked, self.pieces(asked, torch.uint8), strict=True):
            rows = range(first // columns, -(-(first + count) // columns))
            every = self._scales(rows).expand(len(rows), columns).reshape(-1)
            yield NUMBERS.index_select(0, codes.int()), every[first - rows.start * columns :][:count]
            first += count

    def rows(self, numbers: Iterable[int]) -> Tensor:
        """Some rows, float32, its matrices one below the other."""
        chosen = list(numbers)
        codes = torch.frombuffer(self.raw_rows(chosen, self.shape[-1]), dtype=torch.uint8)
        return NUMBERS.index_select(0, codes.int()).view(len(chosen), -1).mul_(self._scales(chosen))

    def grid(self, numbers: Sequence[int]) -> Grid:
        """What can stand in some rows of the tensor, its matrices one below the other."""
        return Grid(torch.float32, self._scales(numbers))

    def block_rows(self, rows: Sequence[int]) -> Tensor:
        """The row of scales that is about each of these rows; every matrix of a stack begins a block of its own."""
        matrix, length, number = self.shape[-2], self.height or self.shape[-2], torch.tensor(rows)
        above = number.div(matrix, rounding_mode="floor") * -(-matrix // length)
        return above + number.remainder(matrix).div(length, rounding_mode="floor")

    def _scales(self, rows: Sequence[int]) -> Tensor:
        """Of each element of some rows: (rows, columns), or (rows, 1) where a row shares one."""
        found = self.shelf.take(self)[self.block_rows(rows)]
        return found if found.shape[1] == 1 else found.repeat_interleave(self.width, 1)[:, : self.shape[-1]]


def scales(stored: Stored) -> Tensor:
    """All scales of a tensor, flattened, float32. Raises DamagedError where a file ends early."""
    alone = replace(stored, digests=None)  # its own check reads it in file order
    if stored.dtype in POWERS:
        data = b"".join(alone.raw())
        exponents = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        powers = torch.ldexp(torch.ones(len(exponents), dtype=torch.float64), exponents.int() - 127).float()
        return powers.masked_fill_(exponents == 255, torch.nan)
    return alone.load().float().reshape(-1)


def owners(tensors: Mapping[str, Stored]) -> dict[str, str]:
    """Scale → its weight, of every weight that is read as code × scale."""
    return {name + tensor.suffix: name for name, tensor in tensors.items() if isinstance(tensor, Coded)}


def companions(tensors: Mapping[str, Stored]) -> set[str]:
    """What stands beside codes and means nothing without them: their scales, and those of activations and caches."""
    scales = owners(tensors)
    return {name for name in tensors if scales and (name in scales or name.rpartition(".")[2] in BESIDE)}


def blocks(shape: Sequence[int], size: tuple[int, int]) -> tuple[int, ...]:
    """How many blocks lie along each axis."""
    counts = (-(-length // one) if one != ALL else 1 for length, one in zip(shape[-2:], size, strict=True))
    return (*shape[:-2], *counts)


def fitted(weight: Stored, scale: Stored, declared: Declaration) -> tuple[int, int] | str:
    """The (height, width) of what shares one of these scales, or why they do not fit: axes of one block may be left out."""
    if weight.dtype != CODES or not 2 <= len(weight.shape) <= 3 or not prod(weight.shape):
        return f"{weight.described()} is not decoded by this version"
    if scale.dtype not in (*FLOATS, *POWERS):
        return f"its scales are {scale.dtype}, which is not decoded by this version"
    fitting = {
        tuple(min(one or length, length) for one, length in zip(size, weight.shape[-2:], strict=True)): size
        for size in declared.blocks
        if _counted(scale.shape) == _counted(blocks(weight.shape, size))
    }
    if len(fitting) == 1:
        return next(iter(fitting.values()))
    said = ", ".join(f"{height or 'all'} × {width or 'all'}" for height, width in declared.blocks)
    return f"{weight.described()} with scales {scale.shape}, yet quantization_config says blocks of {said}"


def _counted(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)
