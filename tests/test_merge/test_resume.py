"""Whatever happens to a merge, the same command ends with the same bytes; anything else in its directory is refused."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import merge
from merge import engine, output
from merge.errors import OutputError, WriteError
from merge.monitor import Monitor
from merge.planner import Options
from merge.sink import STATE, Sink
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


@pytest.fixture(scope="module")
def pair(llama: Any) -> tuple[Path, Path]:
    return llama.base, llama.adapter


@pytest.fixture(scope="module")
def whole(pair: tuple[Path, Path]) -> dict[str, bytes]:
    """The bytes of an uninterrupted run, beside every other output here: the manifest names the adapter by a relative path."""
    out = pair[0].parent / "whole"
    run(work(pair, out))
    return content(out)


@pytest.fixture
def out(pair: tuple[Path, Path], request: pytest.FixtureRequest) -> Path:
    folder = pair[0].parent / f"out-{abs(hash(request.node.nodeid))}"
    yield folder  # type: ignore[misc]
    shutil.rmtree(folder, ignore_errors=True)


def test_a_crash_at_every_effect_loses_nothing(pair: tuple[Path, Path], whole: dict[str, bytes], out: Path) -> None:
    task = work(pair, out)
    counting = FailingSink(out, -1, Crash())
    run(task, counting)
    shutil.rmtree(out)
    assert counting.count > 20
    for at in range(1, counting.count + 1):
        with pytest.raises(Crash):
            run(task, FailingSink(out, at, Crash()))
        assert not (out / "merge-manifest.json").exists() or content(out).keys() >= whole.keys()
        run(task)
        assert content(out) == whole, f"crash at effect {at} of {counting.count}"
        shutil.rmtree(out)


def test_the_bytes_do_not_depend_on_the_workers(pair: tuple[Path, Path], whole: dict[str, bytes], out: Path) -> None:
    run(work(pair, out), workers=5)
    assert content(out) == whole


def test_no_space_left_is_resumable(pair: tuple[Path, Path], whole: dict[str, bytes], out: Path) -> None:
    with pytest.raises(WriteError, match=r"No space left on device.*same command again") as failure:
        run(work(pair, out), FailingSink(out, 12, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))))
    assert failure.value.exit_code == 4
    run(work(pair, out))
    assert content(out) == whole


def test_a_finished_merge_is_not_done_again(pair: tuple[Path, Path], out: Path) -> None:
    assert not run(work(pair, out)).already
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run(work(pair, out)).already
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(OutputError, match="other options"):
        run(work(pair, out, output_dtype="fp32"))


def _half(pair: tuple[Path, Path], out: Path) -> None:
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


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("options", "other options"),
        ("adapter", "another adapter"),
        ("base", "another base, or base shards that changed"),
        ("engine", "another engine version"),
    ],
)
def test_a_half_finished_output_is_only_continued_by_the_same_merge(
    change: str, named: str, pair: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = tuple(shutil.copytree(folder, out.with_name(f"{folder.name}-{out.name}")) for folder in pair)
    try:
        _half(copies, out)
        options = {}
        if change == "options":
            options = {"output_dtype": "fp32"}
        elif change == "adapter":
            (copies[1] / "adapter_config.json").write_text((copies[1] / "adapter_config.json").read_text() + "\n")
        elif change == "base":
            os.utime(next(copies[0].glob("*.safetensors")))
        else:
            monkeypatch.setattr("merge.task.ENGINE", {"name": "mergegate", "version": "0.0.0"})
        before = content(out)
        with pytest.raises(OutputError, match=named) as refusal:
            run(work(copies, out, **options))
        assert refusal.value.exit_code == 3
        assert content(out) == before
    finally:
        for folder in copies:
            shutil.rmtree(folder)


def test_a_finished_shard_that_was_damaged_since_is_written_again(pair: tuple[Path, Path], whole: dict[str, bytes], out: Path) -> None:
    _half(pair, out)
    shard = out / output.status(out).done[0]
    with shard.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    run(work(pair, out))
    assert content(out) == whole


def test_a_finished_shard_that_was_truncated_since_is_written_again(pair: tuple[Path, Path], whole: dict[str, bytes], out: Path) -> None:
    _half(pair, out)
    shard = out / output.status(out).done[0]
    os.truncate(shard, shard.stat().st_size // 2)
    run(work(pair, out))
    assert content(out) == whole


@pytest.mark.parametrize("which", ["base", "adapter"])
def test_inputs_that_change_during_the_run_are_noticed(which: str, pair: tuple[Path, Path], out: Path) -> None:
    copies = tuple(shutil.copytree(folder, out.with_name(f"{folder.name}-{out.name}")) for folder in pair)
    changed = max(copies[0].glob("*.safetensors")) if which == "base" else copies[1] / "adapter_model.safetensors"
    sink = Sink(out)
    commit = sink.commit

    def commit_and_change(file: str, descriptor: int) -> None:
        commit(file, descriptor)
        changed.write_bytes(changed.read_bytes())

    sink.commit = commit_and_change  # type: ignore[method-assign]
    try:
        with pytest.raises(WriteError, match=r"changed"):
            run(work(copies, out), sink)
        assert not (out / "merge-manifest.json").exists()
    finally:
        for folder in copies:
            shutil.rmtree(folder)


def test_an_output_finished_in_the_meantime_is_not_overwritten(pair: tuple[Path, Path], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finishes between our look at OUT and our lock."""
    refuse = output.refuse_full_disk

    def meanwhile(task: Merge) -> None:
        refuse(task)
        monkeypatch.setattr(output, "refuse_full_disk", refuse)
        run(work(pair, out, output_dtype="fp32"))

    monkeypatch.setattr(output, "refuse_full_disk", meanwhile)
    with pytest.raises(OutputError, match="finished by another process"):
        run(work(pair, out))
    assert output.status(out).state == "finished"


def test_a_finished_output_of_another_base_or_a_damaged_one_is_refused(pair: tuple[Path, Path], out: Path) -> None:
    base = shutil.copytree(pair[0], out.with_name(f"base-{out.name}"))
    try:
        run(work((base, pair[1]), out))
        os.utime(next(base.glob("*.safetensors")))
        with pytest.raises(OutputError, match="another base"):
            run(work((base, pair[1]), out))
        next(out.glob("*.safetensors")).unlink()
        os.utime(out / "merge-manifest.json")
        with pytest.raises(OutputError, match="is not what the manifest says"):
            run(work((base, pair[1]), out))
    finally:
        shutil.rmtree(base)


@pytest.mark.parametrize("name", ["../victim", "/victim"])
def test_clean_removes_nothing_outside(name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    (tmp_path / "out" / STATE).mkdir(parents=True)
    named = name if name.startswith("..") else str(victim)
    (tmp_path / "out" / STATE / "journal.jsonl").write_text(json.dumps({"files": [named]}) + "\n")
    with pytest.raises(OutputError, match="lies outside it"):
        output.clean(tmp_path / "out")
    assert victim.exists()


def test_a_second_process_is_refused(pair: tuple[Path, Path], out: Path) -> None:
    _half(pair, out)
    with (out / STATE / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(OutputError, match="another process is merging"):
            run(work(pair, out))


def test_clean_removes_what_is_ours_and_nothing_else(pair: tuple[Path, Path], out: Path) -> None:
    _half(pair, out)
    (out / "notes.txt").write_text("mine")
    assert output.clean(out) >= 1
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    with pytest.raises(OutputError, match="no half-finished merge of ours"):
        output.clean(out)


def test_clean_refuses_a_finished_output_and_overwrite_replaces_it(pair: tuple[Path, Path], whole: dict[str, bytes], out: Path) -> None:
    run(work(pair, out, output_dtype="fp32"))
    with pytest.raises(OutputError, match="finished merge"):
        output.clean(out)
    merge.merge(*pair, out, overwrite=True)
    assert content(out) == whole


def test_sigkill_inside_a_shard_and_the_same_command_again(pair: tuple[Path, Path], whole: dict[str, bytes], out: Path) -> None:
    """A real process, killed between two slabs of a shard: the sink waits there until it is killed."""
    program = f"""
import time
from pathlib import Path
from merge.sink import Sink
write, count = Sink.write, 0
def slow(self, descriptor, data, start):
    global count
    count += 1
    if count == 12:
        Path({str(out)!r}, ".merge", "here").touch()
        time.sleep(60)
    write(self, descriptor, data, start)
Sink.write = slow
import merge
merge.merge({str(pair[0])!r}, {str(pair[1])!r}, {str(out)!r}, workers=1)
"""
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        limit = time.monotonic() + 60
        while not (out / STATE / "here").exists() and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert list(out.glob("*.partial"))
    (out / STATE / "here").unlink()
    run(work(pair, out))
    assert content(out) == whole


def test_the_journal_survives_a_torn_last_line(pair: tuple[Path, Path], whole: dict[str, bytes], out: Path) -> None:
    _half(pair, out)
    log = out / STATE / "journal.jsonl"
    log.write_bytes(log.read_bytes() + json.dumps({"file": "model"}).encode()[:9])
    run(work(pair, out))
    assert content(out) == whole
