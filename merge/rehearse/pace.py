"""How long a merge will take on this machine: a few slabs of each kind of its real work, and a file made durable.

Slabs are read from the real files, worked on by as many threads as the merge will have, and written into a scratch file that is removed.
"""

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import local
from typing import Any

import torch
import xxhash

from merge.catalog import Tensor
from merge.operation import Operation, Part, Read
from merge.rehearse.imagined import Imagined, is_hollow
from merge.runners import numbers
from merge.runners.inputs import Buffers, Factors, Inputs, memory_of
from merge.runners.local import made
from merge.sink import Sink
from merge.source import Reader
from merge.storing import Rule
from merge.task import Merge

BUDGET = 1.0  # seconds for each kind of work
WHOLE = 8  # slabs; an operation with fewer is tried as a whole, another one slab by slab
TRIALS = 64  # operations or slabs of one kind, at most
DURABLE = 128 << 20  # bytes of the file that is made durable
TWICE = 2  # an adapter is hashed and looked at
LOOKED_AT = 1 << 30  # bytes of adapters that are read whole; of larger ones the time is that of reading them


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of one merge, part by part: what comes before the first shard, work, and the disk that takes what was made.

    disk_rate  bytes per second that become durable      tried  bytes that were worked on to know it
    imagined   only headers were there: the numbers that were worked on are made up
    """

    before: float
    work: float
    disk: float
    disk_rate: float
    tried: int
    imagined: bool

    @property
    def seconds(self) -> float:
        """Of the whole command: the disk works while the threads do."""
        return self.before + max(self.work, self.disk)


@dataclass
class _Scratch:
    """A file that slabs are written into one after the other."""

    sink: Sink
    descriptor: int
    place: int = 0
    own: local = field(default_factory=local)

    def write(self, raw: torch.Tensor) -> None:
        data = memory_of(raw)
        place, self.place = self.place, self.place + len(data)
        self.sink.write(self.descriptor, data, place)
        xxhash.xxh3_64_hexdigest(data)

    @property
    def buffers(self) -> Buffers:
        """Of this thread."""
        if not hasattr(self.own, "buffers"):
            self.own.buffers = Buffers()
        found: Buffers = self.own.buffers
        return found


def measure(work: Merge, room: Path, *, workers: int, planned: float) -> Pace:
    """Seconds that the merge will take. room  a folder on the disk that it will be written to      planned  seconds that planning took"""
    with _scratch(room) as scratch, _inputs(work) as inputs, ThreadPoolExecutor(workers) as pool:
        before = planned + _looking(work, inputs)
        kinds = _kinds(work.plan.operations)
        seconds = sum(_spent(operations, work, inputs, scratch, pool, workers) for operations in kinds)
        tried = scratch.place
    rate = _durable(room)
    return Pace(before, seconds, work.disk / rate, rate, tried, isinstance(inputs.base, Imagined))


@contextmanager
def _scratch(room: Path) -> Iterator[_Scratch]:
    with tempfile.TemporaryFile(dir=room) as stream:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield _Scratch(Sink(room), stream.fileno())
        finally:
            torch.set_num_threads(threads)


@contextmanager
def _inputs(work: Merge) -> Iterator[Inputs]:
    held = [[tensor for catalog in work.catalogs for tensor in catalog.tensors], *(adapter.tensors.values() for adapter in work.opened)]
    readers = [_reader(folder, tensors) for folder, tensors in zip((work.base, *work.adapters), held, strict=True)]
    try:
        yield Inputs(readers[0], tuple(readers[1:]))
    finally:
        for reader in readers:
            reader.close()


def _reader(folder: Path, tensors: Collection[Tensor]) -> Reader:
    hollow = is_hollow(folder, (tensor.file for tensor in tensors))
    return Imagined(folder, tensors) if hollow else Reader(folder)


def _looking(work: Merge, inputs: Inputs) -> float:
    """Seconds that the look at the adapters takes; damaged ones are refused here already."""
    size = sum(tensor.size for adapter in work.opened for tensor in adapter.tensors.values())
    began = time.monotonic()
    if size <= LOOKED_AT:
        numbers.refuse_damaged(work.plan, work.opened, inputs)
        _ = work.adapter_files
        return time.monotonic() - began
    tensors = [(adapter.index, tensor) for adapter in work.opened for tensor in adapter.tensors.values()]
    part = tensors[:: -(-size // (LOOKED_AT // 4))]
    for index, tensor in part:
        inputs.tensor(Read("adapter", index, tensor)).float().isfinite().all()
    return TWICE * (time.monotonic() - began) * size / max(1, sum(tensor.size for _, tensor in part))


def _kinds(operations: Iterable[Operation]) -> list[list[Operation]]:
    """Operations that take the same work per slab."""
    found = defaultdict(list)
    for operation in operations:
        source, target = operation.reads[0].tensor, operation.target
        parts = tuple((type(part).__name__, part.a.tensor.shape[0] if isinstance(part, Part) else 0) for part in operation.parts)
        width = 0 if operation.verbatim else target.elements // max(1, operation.slabs.length)
        found[operation.kind, source.dtype, target.dtype, width, parts, operation.passes, len(operation.slabs) <= WHOLE].append(operation)
    return list(found.values())


def _spent(operations: list[Operation], work: Merge, inputs: Inputs, scratch: _Scratch, pool: ThreadPoolExecutor, workers: int) -> float:
    """Seconds of all operations of one kind."""
    options = work.plan.options
    rule = Rule(options.rounding, options.rounds, options.seed)

    def whole(operation: Operation) -> None:
        """As the runner does it: the adapter's share first, then slab after slab."""
        factors = Factors(operation, inputs)
        for start, stop in operation.slabs:
            slab(operation, factors, start, stop)

    def slab(operation: Operation, factors: Factors, start: int, stop: int) -> None:
        scratch.write(made(operation, factors, start, stop, scratch.buffers, inputs, rule)[0])

    first, sizes = operations[0], [operation.target.size for operation in operations]
    if len(first.slabs) <= WHOLE:
        whole(first)  # memory is there from now on
        few = _few(operations, _timed(lambda: whole(operations[-1])), workers)
        took = _timed(lambda: list(pool.map(whole, few)))
        return took * sum(sizes) / max(1, sum(operation.target.size for operation in few)) if sum(sizes) else 0.0
    factors, slabs = Factors(first, inputs), list(first.slabs)
    slab(first, factors, *slabs[0])
    began = _timed(lambda: slab(first, Factors(first, inputs), *slabs[0]))
    some = _few(slabs, one := _timed(lambda: slab(first, factors, *slabs[1])), workers)
    took = _timed(lambda: list(pool.map(lambda cut: slab(first, factors, *cut), some))) / len(some)
    return len(operations) * max(0.0, began - one) / workers + took * sum(len(operation.slabs) for operation in operations)


def _few(all_of_them: Sequence[Any], seconds: float, workers: int) -> list[Any]:
    """As many, from all over, as take about a second, and enough for every thread."""
    count = min(len(all_of_them), max(2 * workers, min(TRIALS, int(BUDGET * workers / max(seconds, 1e-6)))))
    return [all_of_them[place * len(all_of_them) // count] for place in range(count)]


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def _durable(room: Path) -> float:
    """Bytes per second of a file that is written and made durable."""
    block = memory_of(torch.randint(0, 255, (1 << 20,), dtype=torch.uint8))
    with tempfile.TemporaryFile(dir=room) as stream:
        began, sink = time.monotonic(), Sink(room)
        for place in range(0, DURABLE, len(block)):
            sink.write(stream.fileno(), block, place)
        os.fsync(stream.fileno())
    return DURABLE / (time.monotonic() - began)
