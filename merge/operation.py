"""What is to be done, as data: one `Operation` makes exactly one output tensor."""

from collections.abc import Iterator
from dataclasses import dataclass
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
class Part:
    """One addend of a merged weight: scaling · B · A, stored as the base stores the weight.

    a  (rank, in_features)      b  (out_features, rank)
    scaling     the adapter's factor (alpha/rank or alpha/√rank) times the adapter's weight
    transposed  the base stores (in_features, out_features), as Conv1D does: the addend is (B · A)ᵀ
    """

    a: Read
    b: Read
    scaling: float
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Slabs:
    """How the work is cut so that memory is one slab: `height` indices of `axis` at a time, of `length` in all."""

    axis: int
    height: int
    length: int

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.length, self.height):
            yield start, min(start + self.height, self.length)

    def __len__(self) -> int:
        return -(-self.length // self.height)


@dataclass(frozen=True, slots=True)
class Operation:
    """The unit of work.

    target  the output tensor: its place in the output shard is known before the first read
    reads   what it is made from; the first one is decoded, the others belong to its encoding
    parts   what is added in float32, in this order
    passes  1, or 2 with a fold in between
    """

    kind: Literal["copy", "merge", "replace"]
    target: Tensor
    reads: tuple[Read, ...]
    slabs: Slabs
    parts: tuple[Part, ...] = ()
    passes: int = 1

    @property
    def verbatim(self) -> bool:
        """True where the bytes are carried as they are."""
        return not self.parts and self.reads[0].tensor.dtype == self.target.dtype

    def span(self, tensor: Tensor, start: int, stop: int) -> tuple[int, int]:
        """The bytes of its file that slab start…stop occupies in a tensor that the slabs cut: a read, or the target."""
        unit = tensor.size // self.slabs.length
        return tensor.start + start * unit, tensor.start + stop * unit

    def __iter__(self) -> Iterator[Read]:
        """Every read, those of the parts included."""
        yield from self.reads
        for part in self.parts:
            yield part.a
            yield part.b


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
    """What was written for one shard: its size and one xxh3 checksum per slab, in plan order."""

    file: str
    size: int
    blocks: tuple[str, ...]
