"""Shards side by side, each in a process: for tensors so small that Python's own steps take the time, which threads cannot share."""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection

from merge.errors import WriteError
from merge.monitor import Monitor
from merge.operation import ShardPlan, ShardRecord
from merge.runners.local import LocalRunner


class ForkedRunner:
    """Asked for one shard after the other, in their order, while its processes work ahead; the bytes do not depend on how many there are.

    Shards that are durable and were not asked for are in nobody's journal: after a crash they are written again.
    """

    def __init__(self, pipes: Sequence[Connection], monitor: Monitor) -> None:
        self._pipes, self._monitor, self._asked = pipes, monitor, 0

    def run(self, shard: ShardPlan) -> ShardRecord:
        """The record of a shard once it is durable; raises what its process raised."""
        pipe = self._pipes[self._asked % len(self._pipes)]
        self._asked += 1
        try:
            found: ShardRecord | Exception = pipe.recv()
        except (EOFError, OSError) as error:  # dead before it answered, or while it did
            raise WriteError(f"the process that wrote {shard.file} died. What is finished is kept: run the same command again") from error
        if isinstance(found, Exception):
            raise found
        self._monitor.wrote(found.size - len(shard.header))
        return found


@contextmanager
def forked(runner: LocalRunner, shards: Sequence[ShardPlan], processes: int, monitor: Monitor) -> Iterator[ForkedRunner]:
    """Processes that are gone at the end. shards  all that will be asked for, in that order"""
    context, workers, pipes = multiprocessing.get_context("fork"), [], list[Connection]()
    try:
        for first in range(min(processes, len(shards))):
            ours, theirs = context.Pipe(duplex=False)
            pipes.append(ours)
            workers.append(context.Process(target=_labour, args=(runner, shards[first::processes], theirs, tuple(pipes)), daemon=True))
            workers[-1].start()
            theirs.close()
        yield ForkedRunner(pipes, monitor)
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.kill()
                worker.join()


def _labour(runner: LocalRunner, shards: Sequence[ShardPlan], pipe: Connection, inherited: Sequence[Connection]) -> None:
    """In a process of its own. inherited  the ends that are read from: while one is open here, nobody learns that the reader is gone"""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent answers it, and ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for end in inherited:
        end.close()
    for shard in shards:
        found: ShardRecord | Exception
        try:
            found = runner.run(shard)
        except Exception as error:
            found = error
        try:
            pipe.send(found)
        except BrokenPipeError:  # the parent was killed
            return
        if isinstance(found, Exception):
            return
