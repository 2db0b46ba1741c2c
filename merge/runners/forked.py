"""Shards side by side, each in a process: for tensors so small that Python's own steps take the time, which threads cannot share."""

import multiprocessing
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
        except EOFError as error:
            raise WriteError(f"the process that wrote {shard.file} died") from error
        if isinstance(found, Exception):
            raise found
        self._monitor.wrote(found.size)
        return found


@contextmanager
def forked(runner: LocalRunner, shards: Sequence[ShardPlan], processes: int, monitor: Monitor) -> Iterator[ForkedRunner]:
    """Processes that are gone at the end. shards  all that will be asked for, in that order"""
    context, workers, pipes = multiprocessing.get_context("fork"), [], []
    for first in range(min(processes, len(shards))):
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_labour, args=(runner, shards[first::processes], theirs), daemon=True)
        worker.start()
        theirs.close()
        workers.append(worker)
        pipes.append(ours)
    try:
        yield ForkedRunner(pipes, monitor)
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def _labour(runner: LocalRunner, shards: Sequence[ShardPlan], pipe: Connection) -> None:
    """In a process of its own."""
    for shard in shards:
        try:
            pipe.send(runner.run(shard))
        except Exception as error:
            pipe.send(error)
            return
