"""What one operation works with: its reads, the adapter's share in it, and a thread's memory."""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import torch

from merge import arithmetic, encodings, subspace
from merge.encodings import BlockScales, Grid
from merge.operation import Magnitude, Operation, Part, Read, Rows, Shift, Step
from merge.rounding import Space
from merge.source import Reader

RECENT = 4  # whole tensors kept: the experts of a layer lie in operations side by side and share a lora_B
ONE_IN = 8  # slabs are measured under nearest
SCALES = 1024  # weights whose scales are kept: a layer of 256 experts has 768 of them, 3.6 KB each


class Inputs:
    """Where the reads of a plan come from: the base, and the adapters by their index."""

    def __init__(self, base: Reader, adapters: tuple[Reader, ...]) -> None:
        self.base, self.adapters = base, adapters
        self.tensor = functools.lru_cache(RECENT)(self._whole)
        self._scales: OrderedDict[object, BlockScales] = OrderedDict()

    def of(self, read: Read) -> Reader:
        """The reader of one read's folder."""
        return self.base if read.place == "base" else self.adapters[read.index]

    def close(self) -> None:
        """Every file; raises what `Reader.close` does where one was changed while it was read."""
        for reader in (self.base, *self.adapters):
            reader.close()

    def remembered(self, weight: object, make: Callable[[], BlockScales]) -> BlockScales:
        """The scales of one weight: it and its scale tensor are two operations, side by side in most shards, that need the same."""
        found = self._scales.get(weight)
        if found is None:
            found = self._scales[weight] = make()
            while len(self._scales) > SCALES:
                self._scales.popitem(last=False)
        return found

    def _whole(self, read: Read) -> torch.Tensor:
        """A whole tensor, in its stored dtype, not to be changed: the small factors of an adapter."""
        raw = torch.empty(read.tensor.size, dtype=torch.uint8)
        self.of(read).into(read.tensor.file, read.tensor.start, memory_of(raw))
        return encodings.named(read.tensor.dtype).view(raw, read.tensor.shape)


class Factors:
    """The adapter's share in one operation, and the scales of its weight: read when its first slab is worked on, shared by the threads,
    gone with its last job."""

    def __init__(self, operation: Operation, inputs: Inputs) -> None:
        self._operation, self._inputs = operation, inputs
        self._lock = threading.RLock()
        self._steps: tuple[arithmetic.Applied, ...] | None = None
        self._source: Grid | None = None
        self._target: Grid | None = None
        self._regions: tuple[subspace.Region, ...] | None = None

    def steps(self) -> tuple[arithmetic.Applied, ...]:
        """In the plan's order; where norms need a first pass over the tensor, it is done here, by one thread and in order."""
        with self._lock:
            if self._steps is None:
                made = tuple(_applied(part, self._inputs.tensor) for part in self._operation.parts)
                self._steps = self._with_norms(made) if self._operation.passes == 2 else made
            return self._steps

    def source(self) -> Grid:
        """How the weight is stored in what is read."""
        with self._lock:
            if self._source is None:
                encoding = encodings.named(self._operation.reads[0].tensor.dtype)
                self._source = Grid(encoding, self._scales() if encoding.dtype == encodings.CODES else None)
            return self._source

    def target(self) -> Grid:
        """How the weight is stored in what is written: on the base's own scales, but for blocks that have outgrown theirs."""
        operation = self._operation
        with self._lock:
            if self._target is None:
                codes = operation.weight is not None or operation.target.dtype == encodings.CODES
                if codes:
                    weight = operation.reads, operation.parts, operation.cut
                    self._target = Grid(encodings.named(encodings.CODES), self._inputs.remembered(weight, self._grown))
                else:
                    self._target = Grid(encodings.named(operation.target.dtype))
            return self._target

    def exact(self, start: int, stop: int, buffers: "Buffers", *, steps: tuple[arithmetic.Applied, ...] | None = None) -> torch.Tensor:
        """One slab in float32, after every step. steps  those that are taken, if not all"""
        source, grid = self._operation.reads[0].tensor, self.source()
        shape = (stop - start, source.elements // self._operation.cut.length)
        exact = buffers.exact(shape)
        grid.decode(grid.view(buffers.read(self._inputs, self._operation, start, stop), shape), exact, start)
        return arithmetic.merge(exact, self.steps() if steps is None else steps, start)

    def aims(self, start: int, exact: torch.Tensor, buffers: "Buffers", *, whole: int) -> tuple[subspace.Aim, ...]:
        """What rounding must keep of one slab that `exact` has just given. whole  0: the slab holds whole columns of each region"""
        operation, grid, regions, before = self._operation, self.source(), self._found(whole), None
        if not all(region.exact for region in regions):
            before = buffers.space.block("before", tuple(exact.shape))
            grid.decode(
                grid.view(buffers.raw(0, len(exact) * (operation.reads[0].tensor.size // operation.cut.length)), tuple(exact.shape)),
                before,
                start,
            )
        return tuple(subspace.aims(regions, start, exact, before))

    def sampled(self, start: int, stop: int) -> bool:
        """True for the slabs that tell under nearest what is kept of Δ: one in ONE_IN, and the first of every region."""
        number = start // self._operation.cut.height
        return number % ONE_IN == 0 or any(start <= region.rows[0] < stop for region in self._found(1))

    def _found(self, whole: int) -> tuple[subspace.Region, ...]:
        operation = self._operation
        with self._lock:
            if self._regions is None:
                columns = operation.reads[0].tensor.elements // operation.cut.length
                self._regions = subspace.regions(self.steps(), (operation.cut.length, columns), whole)
            return self._regions

    def _with_norms(self, steps: tuple[arithmetic.Applied, ...]) -> tuple[arithmetic.Applied, ...]:
        first = next(n for n, step in enumerate(steps) if isinstance(step, arithmetic.Rescaled))
        operation, buffers = self._operation, Buffers()
        total = torch.zeros(operation.reads[0].tensor.elements // operation.cut.length, dtype=torch.float64)
        for start, stop in operation.cut:
            total += arithmetic.squares(self.exact(start, stop, buffers, steps=steps[:first]))
        rescaled = steps[first]
        assert isinstance(rescaled, arithmetic.Rescaled), "found as one"
        return (*steps[:first], rescaled.knowing(total), *steps[first + 1 :])

    def _scales(self) -> BlockScales:
        """The base's own."""
        scale, shape = self._operation.scale, self._operation.reads[0].tensor.shape
        assert scale is not None, "the plan gives every quantised weight its scale"
        stored = self._inputs.tensor(Read("base", 0, scale.tensor))
        values = torch.empty(stored.shape, dtype=torch.float32)
        encodings.named(scale.tensor.dtype).decode(stored, values)
        return BlockScales(values.view(-1, -(-shape[-1] // scale.width)), scale.height, scale.width, shape[-2])

    def _grown(self) -> BlockScales:
        """Those that hold every number after every step. The base is read once more only for blocks that neither the lengths of the
        factors nor the largest change itself prove to fit."""
        scales, steps, source = self._scales(), self.steps(), self._operation.reads[0].tensor
        reach = arithmetic.reach(steps, scales, source.shape[-1]) if source.dtype == encodings.CODES else None
        doubtful = torch.ones_like(scales.values, dtype=torch.bool) if reach is None else scales.doubtful(reach)
        if reach is not None and bool(doubtful.any()):
            doubtful &= scales.doubtful(self._moved(scales, doubtful))
        return scales.grown(self._largest(scales, doubtful)) if bool(doubtful.any()) else scales

    def _largest(self, scales: BlockScales, wanted: torch.Tensor) -> torch.Tensor:
        """The largest magnitude after every step, in these blocks at least; 0 in slabs that have none of them."""
        found, rows, buffers = torch.zeros_like(scales.values), wanted.any(1), Buffers()
        for start, stop in self._operation.cut:
            if bool(rows[scales.block_rows(start, stop - start)].any()):
                scales.largest(self.exact(start, stop, buffers), start, found)
        return found

    def _moved(self, scales: BlockScales, wanted: torch.Tensor) -> torch.Tensor:
        """The largest change in each of these blocks, by the products alone; 0 elsewhere."""
        found, buffers, columns = torch.zeros_like(scales.values), Buffers(), self._operation.reads[0].tensor.shape[-1]
        for start, stop in self._operation.cut:
            chosen = wanted[scales.block_rows(start, stop - start)].any(0)
            if bool(chosen.any()):
                inside = chosen.repeat_interleave(scales.width)[:columns]
                steps = tuple(replace(step, right=step.right[:, inside]) for step in self.steps() if isinstance(step, arithmetic.Delta))
                delta = arithmetic.merge(buffers.exact((stop - start, int(inside.sum()))).zero_(), steps, start)
                part = found[:, chosen]
                scales.across(chosen).largest(delta, start, part)
                found[:, chosen] = part
        return found


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
    """One thread's memory: two slabs of stored bytes and a float32 twin, grown to the largest slab met and then reused.

    space  what rounding needs beside them
    """

    def __init__(self) -> None:
        self.space = Space()
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
        low, high = operation.cut.span(source.tensor, start, stop)
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
