"""Shards in processes of their own: the same bytes, and failures that the same command continues from."""

import os
from pathlib import Path

import pytest

from merge import engine
from merge.errors import WriteError
from merge.forecast import prepared
from merge.monitor import Monitor
from merge.planner import Options
from merge.proxies import make_adapter, make_checkpoint
from merge.sink import Sink
from merge.task import Merge


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A quantised base in several shards."""
    room = tmp_path_factory.mktemp("forked")
    base = make_checkpoint("deepseek-v3-fp8", room / "base")
    return base, make_adapter(base, room / "adapter")


def asked(pair: tuple[Path, Path], out: Path) -> Merge:
    return prepared(pair[0], [pair[1]], out, "same", Options())


def held(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_processes_do_not_change_a_byte(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    alone, together = Monitor(), Monitor()
    engine.run(asked(pair, tmp_path / "one" / "merged"), alone, workers=1)
    engine.run(asked(pair, tmp_path / "two" / "merged"), together, workers=1, processes=3)
    assert held(tmp_path / "one" / "merged").keys() == held(tmp_path / "two" / "merged").keys()
    one, two = held(tmp_path / "one" / "merged"), held(tmp_path / "two" / "merged")
    assert {name for name in one if one[name] != two[name]} <= {"README.md", "merge-manifest.json"}
    assert (together.shards, together.tensors) == (alone.shards, alone.tensors)
    assert together.bytes >= alone.bytes > 0


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
    assert (work.out / file).stat().st_size == work.plan.shards[1].size
