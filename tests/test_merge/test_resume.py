"""Whatever happens to a merge, the same command ends with the same bytes."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from merge import output
from merge.errors import WriteError
from merge.sink import STATE, Sink
from tests.test_merge.interruption import Crash, FailingSink, content, half, run, work


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


def test_a_finished_shard_that_was_damaged_since_is_written_again(pair: tuple[Path, Path], whole: dict[str, bytes], out: Path) -> None:
    half(pair, out)
    shard = out / output.status(out).done[0]
    with shard.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    run(work(pair, out))
    assert content(out) == whole


def test_a_finished_shard_that_was_truncated_since_is_written_again(pair: tuple[Path, Path], whole: dict[str, bytes], out: Path) -> None:
    half(pair, out)
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
    half(pair, out)
    log = out / STATE / "journal.jsonl"
    log.write_bytes(log.read_bytes() + json.dumps({"file": "model"}).encode()[:9])
    run(work(pair, out))
    assert content(out) == whole
