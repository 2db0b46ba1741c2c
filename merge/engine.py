"""The only file that orders effects: look at OUT, write shard after shard, then what stands beside them, the manifest last."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from merge import journal, manifest, output
from merge.errors import NOTHING_WRITTEN, MergeError, OutputError, WriteError
from merge.manifest import MANIFEST, Manifest
from merge.monitor import Monitor
from merge.operation import ShardPlan, ShardRecord
from merge.runners import numbers
from merge.runners.forked import forked
from merge.runners.inputs import Inputs
from merge.runners.local import LocalRunner, matches, single_threaded
from merge.sink import Sink
from merge.source import Reader
from merge.storing import Rule
from merge.task import Merge


@dataclass(frozen=True, slots=True)
class Result:
    """A finished merge; `already` where the same one was found finished, and nothing was done."""

    manifest: Manifest
    already: bool = False


def run(merge: Merge, monitor: Monitor, *, workers: int, overwrite: bool = False, sink: Sink | None = None, processes: int = 1) -> Result:
    """Merge, or continue a half-finished merge; raises WriteError (exit code 4, resumable) if writing fails.

    workers  threads      processes  if more than one, each has that many threads and shards of its own: for very small tensors
    """
    sink = sink or Sink(merge.out)
    made = merge.plan
    before = None if overwrite else output.finished(merge, sink)
    if before:
        return Result(before, already=True)
    output.refuse_foreign(merge.out)
    output.refuse_full_disk(merge)
    with single_threaded():
        _refuse_damaged(merge)
    facts = merge.facts
    if overwrite:
        output.clean(merge.out, also_finished=True)
    log = _locked(merge, sink)
    try:
        if manifest.read(merge.out):
            raise OutputError(f"{merge.out} was finished by another process in the meantime. {NOTHING_WRITTEN}")
        with _writing(merge.out):
            done = log.resume(facts)
        monitor.expect(size=made.size, tensors=sum(made.counts.values()), shards=len(made.shards))
        with _writing(merge.out), single_threaded():
            records = _shards(merge, done, log, sink, monitor, workers, processes)
            monitor.finished()
            finished = merge.manifest(records)
            _beside(merge, sink)
            sink.whole(MANIFEST, finished.to_bytes())
    except BaseException:
        log.close()
        raise
    log.close(done=True)
    return Result(finished)


def _locked(merge: Merge, sink: Sink) -> journal.Journal:
    """OUT made, and locked for this process."""
    try:
        sink.prepare()
        return journal.Journal(sink)
    except OSError as error:
        raise OutputError(f"{merge.out} cannot be made: {error.strerror}. {NOTHING_WRITTEN}") from error


def _shards(
    merge: Merge, done: Mapping[str, ShardRecord], log: journal.Journal, sink: Sink, monitor: Monitor, workers: int, processes: int
) -> list[ShardRecord]:
    """Every shard's record, in plan order: those of an earlier run once their bytes were found unchanged, then the others."""
    stamps = {file: tuple(found) for file, found in merge.facts["base"]["shards"].items()}
    base, written = Reader(merge.base, stamps), Reader(merge.out)
    inputs = Inputs(base, tuple(Reader(folder, found) for folder, found in zip(merge.adapters, merge.adapter_stamps, strict=True)))
    options = merge.plan.options
    local = LocalRunner(inputs, sink, monitor, workers, Rule(options.rounding, options.rounds, options.seed))
    try:
        kept = {}
        for shard in merge.plan.shards:
            if record := _kept(shard, done, merge.out, written):
                kept[shard.file] = record
                monitor.finished_shard(len(shard.operations), resumed=shard.size)
        left = [shard for shard in merge.plan.shards if shard.file not in kept]
        with forked(local, left, processes, monitor) if processes > 1 else nullcontext(local) as runner:
            for shard in left:
                kept[shard.file] = record = runner.run(shard)
                log.finished(record)
                monitor.finished_shard(len(shard.operations))
        return [kept[shard.file] for shard in merge.plan.shards]
    finally:
        inputs.close()
        written.close()


def _kept(shard: ShardPlan, done: Mapping[str, ShardRecord], out: Path, written: Reader) -> ShardRecord | None:
    """The record of a shard that an earlier run finished, and whose bytes are unchanged."""
    record = done.get(shard.file)
    same = record and (out / shard.file).is_file() and matches(shard, record, written)
    written.close()
    return record if same else None


def _beside(merge: Merge, sink: Sink) -> None:
    """Index and side files; the manifest comes after them."""
    for name, source in merge.side_files.sources.items():
        sink.carry(name, source)
    for name, data in merge.written.items():
        sink.whole(name, data)


def _refuse_damaged(merge: Merge) -> None:
    """Raises AdapterError for what only the numbers show; reads the adapters whole."""
    inputs = Inputs(Reader(merge.base), tuple(Reader(folder) for folder in merge.adapters))
    try:
        numbers.refuse_damaged(merge.plan, merge.opened, inputs)
    finally:
        inputs.close()


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Once writing has begun every failure is one that the same command continues from."""
    resume = f"What is finished in {out} is kept: run the same command again to continue."
    try:
        yield
    except OSError as error:
        raise WriteError(f"{error.filename or out}: {error.strerror}. {resume}") from error
    except (OutputError, WriteError):
        raise
    except MergeError as error:
        raise WriteError(f"{error}. {resume}") from error
