"""What one operation works with: its reads, the adapter's share in it, and a thread's memory."""

import functools
import threading
from collections.abc import Callable

import torch

from merge import arithmetic, encodings
from merge.operation import Magnitude, Operation, Part, Read, Rows, Shift, Step
from merge.source import Reader

RECENT = 4  # whole tensors kept: the experts of a layer lie in operations side by side and share a lora_B


class Inputs:
    """Where the reads of a plan come from: the base, and the adapters by their index."""

    def __init__(self, base: Reader, adapters: tuple[Reader, ...]) -> None:
        self.base, self.adapters = base, adapters
        self.tensor = functools.lru_cache(RECENT)(self._whole)

    def of(self, read: Read) -> Reader:
        """The reader of one read's folder."""
        return self.base if read.place == "base" else self.adapters[read.index]

    def rows(self, operation: Operation, start: int, stop: int) -> torch.Tensor:
        """Rows start … stop of what an operation begins as, in its stored dtype."""
        source = operation.reads[0].tensor
        raw = Buffers().read(self, operation, start, stop)
        return encodings.named(source.dtype).view(raw, (stop - start, source.elements // operation.slabs.length))

    def _whole(self, read: Read) -> torch.Tensor:
        """A whole tensor, in its stored dtype, not to be changed: the small factors of an adapter."""
        raw = torch.empty(read.tensor.size, dtype=torch.uint8)
        self.of(read).into(read.tensor.file, read.tensor.start, memory_of(raw))
        return encodings.named(read.tensor.dtype).view(raw, read.tensor.shape)


class Factors:
    """The adapter's share in one operation: read when its first slab is worked on, shared by the threads, gone with its last job."""

    def __init__(self, operation: Operation, inputs: Inputs) -> None:
        self._operation, self._inputs = operation, inputs
        self._lock = threading.Lock()
        self._steps: tuple[arithmetic.Applied, ...] | None = None

    def steps(self) -> tuple[arithmetic.Applied, ...]:
        """In the plan's order; where norms need a first pass over the tensor, it is done here, by one thread and in order."""
        with self._lock:
            if self._steps is None:
                made = tuple(_applied(part, self._inputs.tensor) for part in self._operation.parts)
                self._steps = self._with_norms(made) if self._operation.passes == 2 else made
            return self._steps

    def _with_norms(self, steps: tuple[arithmetic.Applied, ...]) -> tuple[arithmetic.Applied, ...]:
        first = next(n for n, step in enumerate(steps) if isinstance(step, arithmetic.Rescaled))
        operation, source, buffers = self._operation, self._operation.reads[0], Buffers()
        columns = source.tensor.elements // operation.slabs.length
        total = torch.zeros(columns, dtype=torch.float64)
        for start, stop in operation.slabs:
            raw = buffers.read(self._inputs, operation, start, stop)
            stored = encodings.named(source.tensor.dtype).view(raw, (stop - start, columns))
            total += arithmetic.squares(stored, steps[:first], start, buffers.exact((stop - start, columns)))
        rescaled = steps[first]
        assert isinstance(rescaled, arithmetic.Rescaled), "found as one"
        return (*steps[:first], rescaled.knowing(total), *steps[first + 1 :])


def _applied(part: Step, tensor: Callable[[Read], torch.Tensor]) -> arithmetic.Applied:
    """One step of the plan with its numbers."""
    match part:
        case Part(a, b, scaling, transposed, columns, rows, at):
            return arithmetic.Delta.of(tensor(a), tensor(b), scaling, transposed=transposed, columns=columns, rows=rows, at=at)
        case Shift(value, scaling):
            return arithmetic.Shifted(tensor(value).float().flatten().unsqueeze(1), scaling)
        case Rows(value, indices):
            return arithmetic.Placed(tensor(value).float(), indices)
        case Magnitude(value, axis):
            return arithmetic.Rescaled(tensor(value).float().flatten(), axis)


class Buffers:
    """One thread's memory: two slabs of stored bytes and a float32 twin, grown to the largest slab met and then reused."""

    def __init__(self) -> None:
        self._raw = [torch.empty(0, dtype=torch.uint8) for _ in range(2)]
        self._exact = torch.empty(0, dtype=torch.float32)

    def raw(self, which: int, size: int) -> torch.Tensor:
        """`size` bytes, uint8."""
        if len(self._raw[which]) < size:
            self._raw[which] = torch.empty(size, dtype=torch.uint8)
        return self._raw[which][:size]

    def read(self, inputs: Inputs, operation: Operation, start: int, stop: int) -> torch.Tensor:
        """The stored bytes of one slab of what an operation begins as."""
        source = operation.reads[0]
        low, high = operation.span(source.tensor, start, stop)
        raw = self.raw(0, high - low)
        inputs.of(source).into(source.tensor.file, low, memory_of(raw))
        return raw

    def exact(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A float32 block of this shape."""
        count = torch.Size(shape).numel()
        if len(self._exact) < count:
            self._exact = torch.empty(count, dtype=torch.float32)
        return self._exact[:count].view(shape)


def memory_of(raw: torch.Tensor) -> memoryview:
    """The memory of a uint8 tensor."""
    return memoryview(raw.numpy())  # type: ignore[arg-type]  # numpy's stubs hide the buffer protocol
