"""What one tensor of a right merge is made of: what it begins as, what is added to which of its rows, and what happens to the sum.

A tensor is seen as a matrix: a weight as it is; experts (E, rows, columns) one below the other; a convolution with all axes but the first
in a row; a bias as one column. Every kind of LoRA is then the same recipe:

    M  =  gain ∘ (start + Σ scaling · left · right),   some rows replaced

start   the base's tensor; another one's (the head of a tied model); or the adapter's own copy (a resized vocabulary, a module saved whole)
gain    DoRA: m / ‖V‖, V the sum, along the rows of the matrix (a linear map, a convolution) or its columns (where it is stored (in, out))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Literal

import torch
from torch import Tensor

from certify.bounds import Delta
from certify.expect.place import Orientation
from certify.inputs.adapter import AdapterTensor
from certify.inputs.stored import Stored

Along = Literal["rows", "columns"]


@dataclass(frozen=True, slots=True)
class Cut:
    """One expert of factors that hold all of them. A (r·experts, a) expert by expert; B (b, r·experts): rank by rank unless `grouped`.

    part, parts: which share of the expert's rows, as the tensor is stored
    """

    expert: int
    experts: int
    grouped: bool = False
    part: int = 0
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Part:
    """One low-rank delta of a tensor: scaling · B · A, transposed where the module stores (in, out).

    a  (rank, in …)   b  (out, rank …)   axes behind the second are taken with it; a None: a bias, B is (out,) and A is 1
    scaling: the adapter's α/r or α/√r times the weight that the user gave it
    path: what the adapter's patterns are matched with
    """

    a: AdapterTensor | None
    b: AdapterTensor
    rank: int
    scaling: float
    orientation: Orientation
    cut: Cut | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class Region:
    """Rows first … last − 1 of the matrix, and the deltas that are added there."""

    first: int
    last: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Expectation:
    """A recipe. regions: in the order of their rows, none across another; tokens: rows that `token_rows` (n, columns) replaces."""

    start: Stored | AdapterTensor
    columns: int
    regions: tuple[Region, ...] = ()
    magnitude: AdapterTensor | None = None
    along: Along = "rows"
    tokens: tuple[int, ...] = ()
    token_rows: AdapterTensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.start.shape

    @property
    def rows(self) -> int:
        return prod(self.start.shape) // max(1, self.columns)


def columns_of(shape: Sequence[int], *, convolution: bool = False) -> int:
    """The width of a tensor seen as a matrix."""
    if len(shape) < 2:
        return 1
    return prod(shape[1:]) if convolution else shape[-1]


def factors(part: Part) -> Delta:
    """Both factors in float32, in the order in which the tensor is stored. Raises DamagedError where a file ends early."""
    load = _whole if part.cut else AdapterTensor.load
    b = load(part.b)
    a = load(part.a) if part.a else torch.ones(1, 1, dtype=b.dtype)
    dtype = a.dtype if a.dtype == b.dtype else torch.float32
    if part.cut is not None:
        a, b = _cut(a, b, part.cut)
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    left, right = (b.float(), a.float()) if part.orientation == "out,in" else (a.float().T.contiguous(), b.float().T.contiguous())
    if part.cut is not None and part.cut.parts > 1:
        height = len(left) // part.cut.parts
        left = left[part.cut.part * height :][:height]
    return Delta(left, right, part.scaling, dtype)


def _cut(a: Tensor, b: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
    rank = len(a) // cut.experts
    a = a[cut.expert * rank :][:rank]
    return a, b[:, cut.expert * rank :][:, :rank] if cut.grouped else b[:, cut.expert :: cut.experts]


@lru_cache(maxsize=2)
def _whole(tensor: AdapterTensor) -> Tensor:
    """The last two are kept: the experts of a layer share their factors."""
    return tensor.load()
