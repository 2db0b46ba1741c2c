"""Shards in processes of their own: the same bytes, and failures that the same command continues from."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from merge import engine
from merge.errors import WriteError
from merge.forecast import prepared
from merge.monitor import Monitor
from merge.planner import Options
from merge.proxies import make_adapter, make_checkpoint
from merge.sink import Sink
from merge.task import RUN_FILE, Merge

T = TypeVar("T")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A quantised base in several shards."""
    room = tmp_path_factory.mktemp("forked")
    base = make_checkpoint("deepseek-v3-fp8", room / "base")
    return base, make_adapter(base, room / "adapter")


def asked(pair: tuple[Path, Path], out: Path) -> Merge:
    return prepared(pair[0], [pair[1]], out, "same", Options())


def held(out: Path) -> dict[str, bytes]:
    """Every file's bytes; the figures of the run are no part of the result."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != RUN_FILE}


def test_processes_do_not_change_a_byte(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone, together = Monitor(), Monitor()
    engine.run(asked(pair, tmp_path / "one" / "merged"), alone, workers=1)
    engine.run(asked(pair, tmp_path / "two" / "merged"), together, workers=1, processes=3)
    assert held(tmp_path / "one" / "merged") == held(tmp_path / "two" / "merged")
    assert (together.shards, together.tensors, together.bytes) == (alone.shards, alone.tensors, alone.bytes)


class Failing(Sink):
    """One shard fails, by an error or with its process."""

    def __init__(self, out: Path, file: str, *, dies: bool) -> None:
        super().__init__(out)
        self._file, self._dies = file, dies

    def commit(self, file: str, descriptor: int) -> None:
        if file == self._file and self._dies:
            os._exit(9)
        if file == self._file:
            raise OSError(28, "No space left on device", file)
        super().commit(file, descriptor)


@pytest.mark.parametrize("dies", [False, True])
def test_what_a_process_cannot_write_is_written_by_the_same_command_again(dies: bool, pair: tuple[Path, Path], tmp_path: Path) -> None:
    work = asked(pair, tmp_path / "merged")
    file = work.plan.shards[1].file
    with pytest.raises(WriteError, match="died" if dies else "No space left"):
        engine.run(work, Monitor(), workers=1, processes=2, sink=Failing(work.out, file, dies=dies))
    assert not (work.out / "merge-manifest.json").exists()
    again = Monitor()
    engine.run(asked(pair, tmp_path / "merged"), again, workers=1, processes=2)
    assert again.resumed_bytes >= work.plan.shards[0].size
    made = held(work.out)
    shutil.rmtree(work.out)
    engine.run(asked(pair, tmp_path / "merged"), Monitor(), workers=1)
    assert made == held(work.out)


CHILDREN = """
import os, sys, time
from dataclasses import replace
from pathlib import Path
from merge import engine
from merge.runners.local import LocalRunner
from merge.forecast import prepared
from merge.monitor import Monitor
from merge.planner import Options
run = LocalRunner.run
def large(self, shard):
    record = replace(run(self, shard), blocks=tuple(f"{number:016x}" for number in range(9000)))  # more than a pipe holds
    Path(sys.argv[4], str(os.getpid())).touch()
    return record
LocalRunner.run = large
work = prepared(Path(sys.argv[1]), [Path(sys.argv[2])], Path(sys.argv[3]), "same", Options())
class Stuck(Monitor):
    def finished_shard(self, *given, **named):
        time.sleep(60)
engine.run(work, Stuck(), workers=1, processes=2)
"""


def test_processes_end_with_a_parent_that_was_killed(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Else they would hold the lock of the output for ever."""
    (tmp_path / "seen").mkdir()
    words = [str(pair[0]), str(pair[1]), str(tmp_path / "merged"), str(tmp_path / "seen")]
    with subprocess.Popen([sys.executable, "-c", CHILDREN, *words]) as parent:
        children = _until(lambda: [int(path.name) for path in (tmp_path / "seen").iterdir()])
        parent.kill()
    assert children
    assert _until(lambda: not any(Path("/proc", str(child)).exists() for child in children)), "a child outlived its parent"
    engine.run(asked(pair, tmp_path / "merged"), Monitor(), workers=1)


def _until(ask: Callable[[], T]) -> T:
    """The first answer that is true, or the last one after half a minute."""
    limit = time.monotonic() + 30
    while not (found := ask()) and time.monotonic() < limit:
        time.sleep(0.02)
    return found
