"""A merge that stops where a test wants it to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from merge import engine, output
from merge.monitor import Monitor
from merge.planner import Options
from merge.sink import Sink
from merge.task import RUN_FILE, Merge

EFFECTS = ("prepare", "begin", "write", "commit", "whole", "carry", "sync_folder")


class Crash(BaseException):
    """The machine stops here."""


class FailingSink(Sink):
    """A sink whose n-th effect does not happen."""

    def __init__(self, out: Path, at: int, error: BaseException) -> None:
        super().__init__(out)
        self.count, self._at, self._error = 0, at, error

    def _effect(self, name: str, *args: Any) -> Any:
        self.count += 1
        if self.count == self._at:
            raise self._error
        return getattr(super(), name)(*args)


def _counted(name: str) -> Callable[..., Any]:
    return lambda self, *args: FailingSink._effect(self, name, *args)


for _name in EFFECTS:
    setattr(FailingSink, _name, _counted(_name))


def work(pair: tuple[Path, Path], out: Path, **options: Any) -> Merge:
    return Merge(pair[0], (pair[1],), out, Options(**options))


def run(task: Merge, sink: Sink | None = None, workers: int = 2) -> engine.Result:
    return engine.run(task, Monitor(), workers=workers, sink=sink)


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != RUN_FILE}


def half(pair: tuple[Path, Path], out: Path) -> None:
    """Stop a merge after its first shard."""
    sink = Sink(out)
    commits: list[str] = []
    commit = sink.commit

    def crash_at_the_second(file: str, descriptor: int) -> None:
        if commits:
            raise Crash
        commits.append(file)
        commit(file, descriptor)

    sink.commit = crash_at_the_second  # type: ignore[method-assign]
    with pytest.raises(Crash):
        run(work(pair, out), sink)
    assert output.status(out).state == "half-finished"
    assert len(output.status(out).done) == 1
