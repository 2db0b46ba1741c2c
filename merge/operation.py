"""What is to be done, as data: one `Operation` makes exactly one output tensor."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from merge.catalog import Tensor

Place = Literal["base", "adapter"]


@dataclass(frozen=True, slots=True)
class Read:
    """A tensor to be read from a file of the base or of one adapter.

    place, index  the base (0), or the adapter's position on the command line
    tensor        file, byte range, dtype and shape
    """

    place: Place
    index: int
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Scale:
    """What the codes of a quantised weight are multiplied by: one number per block of height × width elements of each matrix.

    tensor  of the base, perhaps in another shard than its weight
    """

    tensor: Tensor
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Part:
    """One addend of a weight: scaling · B · A, or some rows of it, laid over rows of the stored weight.

    A stored weight counts as a matrix: a convolution has a row per output channel, stacked experts lie one below the other.

    a  (rank, in_features, …)      b  (out_features, columns, …), trailing dimensions flattened
    scaling     the adapter's factor (alpha/rank or alpha/√rank) times the adapter's weight
    transposed  the addend is (B · A)ᵀ: the base stores (in_features, out_features), as Conv1D and embeddings do
    columns     (first, step): the rank columns of B that belong to A; every expert has its own in a stack
    rows        (start, stop) of the addend that lie in this tensor
    at          row of the stored weight that takes the first of them
    whole       1: a layer's input meets every row of the stored weight as a vector; 0: every column, as in Conv1D
                (an embedding's rows are looked up, and what reads them next meets them whole: 1)
    """

    a: Read
    b: Read
    scaling: float
    transposed: bool
    columns: tuple[int, int]
    rows: tuple[int, int]
    at: int
    whole: int = 1

    @property
    def reads(self) -> tuple[Read, ...]:
        return self.a, self.b


@dataclass(frozen=True, slots=True)
class Shift:
    """scaling · value is added, element by element: the bias of lora_B."""

    value: Read
    scaling: float

    @property
    def reads(self) -> tuple[Read, ...]:
        return (self.value,)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of the stored weight that take trained values: row indices[i] becomes value[i]."""

    value: Read
    indices: tuple[int, ...]

    @property
    def reads(self) -> tuple[Read, ...]:
        return (self.value,)


@dataclass(frozen=True, slots=True)
class Magnitude:
    """DoRA: what lies there is divided by its norms and multiplied by the learned ones.

    axis  1: one norm per stored row; 0: one per stored column, which takes a pass over the whole tensor first
    """

    value: Read
    axis: int

    @property
    def reads(self) -> tuple[Read, ...]:
        return (self.value,)


Step = Part | Shift | Rows | Magnitude


@dataclass(frozen=True, slots=True)
class Slabs:
    """How the work is cut so that memory is one slab: `height` indices of `axis` at a time, of `length` in all.

    period  rows of one matrix of a stack, which a slab never crosses; None where that does not matter
    """

    axis: int
    height: int
    length: int
    period: int | None = None

    def __iter__(self) -> Iterator[tuple[int, int]]:
        period = self.period or max(1, self.length)
        for begin in range(0, self.length, period):
            for start in range(begin, begin + period, self.height):
                yield start, min(start + self.height, begin + period, self.length)

    def __len__(self) -> int:
        period = self.period or max(1, self.length)
        return self.length // period * -(-period // self.height)

    def span(self, tensor: Tensor, start: int, stop: int) -> tuple[int, int]:
        """The bytes of its file that slab start…stop occupies in a tensor that is cut so."""
        unit = tensor.size // self.length
        return tensor.start + start * unit, tensor.start + stop * unit


@dataclass(frozen=True, slots=True)
class Operation:
    """The unit of work.

    kind    "convert": the same numbers in another dtype; "scale": the target is the scale that a changed weight needs
    target  the output tensor: its place in the output shard is known before the first read
    reads   what it is made from
    parts   what happens to it in float32, in this order
    passes  1, or 2 with a fold in between
    scale   of the codes that are read, and of those that are written: where an amax outgrows its block's, a first pass finds out
    weight  how the weight is cut whose scale the target is; None where the target is the weight
    """

    kind: Literal["copy", "convert", "merge", "replace", "scale"]
    target: Tensor
    reads: tuple[Read, ...]
    slabs: Slabs
    parts: tuple[Step, ...] = ()
    passes: int = 1
    scale: Scale | None = None
    weight: Slabs | None = None

    @property
    def verbatim(self) -> bool:
        """True where the bytes are carried as they are."""
        return self.kind != "scale" and not self.parts and self.reads[0].tensor.dtype == self.target.dtype

    @property
    def whole(self) -> int:
        """1 where rounding may look at rows one by one, 0 where a vector that belongs together is a column; a bias is one column."""
        if all(isinstance(part, Shift) for part in self.parts):
            return 0
        return min((part.whole for part in self.parts if isinstance(part, Part)), default=1)

    @property
    def cut(self) -> Slabs:
        """How what is read is cut."""
        return self.weight or self.slabs

    def __iter__(self) -> Iterator[Read]:
        """Every read, those of the parts included."""
        yield from self.reads
        for part in self.parts:
            yield from part.reads


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One output shard: its leading bytes and the operations that tile it without gap or overlap."""

    file: str
    header: bytes
    size: int
    operations: tuple[Operation, ...]

    @property
    def blocks(self) -> int:
        """Number of slabs, each with a checksum of its own."""
        return sum(len(operation.slabs) for operation in self.operations)


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """What was written for one shard: its size, one xxh3 checksum per slab, in plan order, and per merged tensor how much of Δ is there.

    sums  tensor → the fields of `fidelity.Sums`
    """

    file: str
    size: int
    blocks: tuple[str, ...]
    sums: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
