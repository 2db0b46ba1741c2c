"""Plain threads on this machine's CPU, each with one slab of memory that it uses again and again.

Page faults, not arithmetic, cost the time of a merge: a slab of about 1 MiB and its float32 twin stay in a core's cache, and
positional reads and writes through the same buffer fault nothing in. torch releases the GIL in these calls.
"""

import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass

import torch
import xxhash

from merge import encodings, fidelity, storing
from merge.errors import WriteError
from merge.monitor import Monitor
from merge.operation import Operation, ShardPlan, ShardRecord
from merge.runners.inputs import Buffers, Factors, Inputs, memory_of
from merge.sink import Sink
from merge.source import Reader

FLUSH_EVERY = 0.05  # seconds; the disk works while the threads do, so that little is left for the last fsync
SLABS_PER_JOB = 8  # big tensors spread over the threads, small ones do not cost a queue round trip per slab


@dataclass(frozen=True, slots=True)
class Job:
    """Consecutive slabs of one operation, and the number of its first slab in the shard."""

    operation: Operation
    factors: Factors
    slabs: tuple[tuple[int, int], ...]
    first: int


class LocalRunner:
    """Works on one shard at a time with `workers` threads; the bytes do not depend on how many."""

    def __init__(self, inputs: Inputs, sink: Sink, monitor: Monitor, workers: int, rule: storing.Rule) -> None:
        self._inputs, self._sink, self._monitor, self._workers, self._rule = inputs, sink, monitor, workers, rule

    def run(self, shard: ShardPlan) -> ShardRecord:
        """Write one shard, durable under its final name; raises what the first failing thread raised, or that an input changed."""
        descriptor = self._sink.begin(shard.file, shard.header, shard.size)
        try:
            checksums, sums = self._work(shard, descriptor)
            self._sink.commit(shard.file, descriptor)
        finally:
            os.close(descriptor)
        self._inputs.close()
        return ShardRecord(shard.file, shard.size, tuple(checksums), sums)

    def _work(self, shard: ShardPlan, descriptor: int) -> tuple[list[str], dict[str, tuple[float, ...]]]:
        """One checksum per slab, in plan order, and the sums of every tensor that has some."""
        checksums = [""] * shard.blocks
        sums: list[fidelity.Sums | None] = [None] * shard.blocks
        jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        for job in _jobs(shard, self._inputs):
            jobs.put(job)
        failures: list[BaseException] = []

        def labour() -> None:
            buffers = Buffers()
            try:
                while not failures:
                    job = jobs.get_nowait()
                    for number, (start, stop) in enumerate(job.slabs, job.first):
                        checksums[number], sums[number] = self._slab(job, start, stop, buffers, descriptor)
            except queue.Empty:
                return
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=labour, name=f"merge-{n}") for n in range(self._workers)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(FLUSH_EVERY)
                    self._sink.flush(descriptor)
        except BaseException as error:  # Ctrl-C: let the threads stop at their next slab
            failures.append(error)
            raise
        finally:
            for thread in threads:
                thread.join()
        if failures:
            raise failures[0]
        assert all(checksums), "every slab has been written"
        return checksums, _per_tensor(shard, sums)

    def _slab(self, job: Job, start: int, stop: int, buffers: "Buffers", descriptor: int) -> tuple[str, fidelity.Sums | None]:
        """Read, work on and write one slab; its checksum, and what was kept of Δ where there is one."""
        raw, sums = made(job.operation, job.factors, start, stop, buffers, self._inputs, self._rule)
        data = memory_of(raw)
        place, _ = job.operation.slabs.span(job.operation.target, start, stop)
        self._sink.write(descriptor, data, place)
        self._monitor.wrote(len(data))
        return xxhash.xxh3_64_hexdigest(data), sums


@contextmanager
def single_threaded() -> Iterator[None]:
    """torch's own threads at rest: a worker is a thread, and the last bits must not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def made(
    operation: Operation, factors: Factors, start: int, stop: int, buffers: Buffers, inputs: Inputs, rule: storing.Rule
) -> tuple[torch.Tensor, fidelity.Sums | None]:
    """The bytes of one slab of the target, in the thread's memory, and what was kept of Δ where there is one."""
    if operation.kind == "scale":
        return _scales(operation, factors, buffers), None
    if operation.verbatim:
        return buffers.read(inputs, operation, start, stop), None
    return _computed(operation, factors, start, stop, buffers, rule)


def matches(shard: ShardPlan, record: ShardRecord, written: Reader) -> bool:
    """True if a finished shard still holds what its record says, block by block; its bytes are read, nothing is computed.

    written  reads the output directory
    """
    if not record.size == shard.size == written.size(shard.file) or len(record.blocks) != shard.blocks:
        return False
    recorded = iter(record.blocks)
    buffers = Buffers()
    head = buffers.raw(0, len(shard.header))
    written.into(shard.file, 0, memory_of(head))
    if head.numpy().tobytes() != shard.header:
        return False
    for operation in shard.operations:
        for start, stop in operation.slabs:
            low, high = operation.slabs.span(operation.target, start, stop)
            data = memory_of(buffers.raw(0, high - low))
            written.into(shard.file, low, data)
            if xxhash.xxh3_64_hexdigest(data) != next(recorded):
                return False
    return True


def _jobs(shard: ShardPlan, inputs: Inputs) -> Iterator[Job]:
    number = 0
    for operation in shard.operations:
        factors, slabs = Factors(operation, inputs), tuple(operation.slabs)
        for first in range(0, len(slabs), SLABS_PER_JOB):
            yield Job(operation, factors, slabs[first : first + SLABS_PER_JOB], number + first)
        number += len(slabs)


def _per_tensor(shard: ShardPlan, sums: list[fidelity.Sums | None]) -> dict[str, tuple[float, ...]]:
    number, found = 0, {}
    for operation in shard.operations:
        own = [s for s in sums[number : number + len(operation.slabs)] if s]
        number += len(operation.slabs)
        if own:
            found[operation.target.name] = astuple(fidelity.folded(own).times(len(operation.slabs) / len(own)))
    return found


def _computed(
    operation: Operation, factors: Factors, start: int, stop: int, buffers: Buffers, rule: storing.Rule
) -> tuple[torch.Tensor, fidelity.Sums | None]:
    """The bytes of one slab of the target; raises WriteError where a value has no place in the output's dtype."""
    low, high = operation.slabs.span(operation.target, start, stop)
    grid = factors.target()
    exact = factors.exact(start, stop, buffers)
    out = buffers.raw(0 if operation.reads[0].tensor.dtype == operation.target.dtype else 1, high - low)  # what was read is not needed
    stored, sums = grid.view(out, tuple(exact.shape)), None
    whole = operation.whole if rule.name == "faithful" else 1
    if operation.parts and (rule.name != "nearest" or factors.sampled(start, stop)):
        aims = factors.aims(start, exact, buffers, whole=whole)
        sums = storing.store(exact, grid, stored, start, operation.target.name, aims, rule, buffers.space)
        fits = sums is not None
    else:
        fits = grid.encode(exact, stored, start)
    if not fits:
        raise WriteError(
            f"{operation.target}: rows {start}…{stop} hold a NaN or a value beyond what {operation.target.dtype} can hold.\n"
            "Choose a wider --output-dtype; the half-finished output can be removed with `python -m merge clean`."
        )
    return out, sums


def _scales(operation: Operation, factors: Factors, buffers: Buffers) -> torch.Tensor:
    """The bytes of the scale tensor of a merged weight; raises WriteError where a scale has no place in its dtype."""
    scales, encoding = factors.target().scales, encodings.named(operation.target.dtype)
    assert scales is not None, "a scale belongs to codes"
    out = buffers.raw(1, operation.target.size)
    if not encoding.encode(scales.values, encoding.view(out, tuple(scales.values.shape))):
        raise WriteError(f"{operation.target}: a scale has outgrown {operation.target.dtype}. Choose --output-dtype bf16.")
    return out
