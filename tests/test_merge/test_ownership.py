"""An output directory belongs to one merge: whatever else lies in it, or wants it, is refused."""

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest

import merge
from merge import output
from merge.errors import OutputError
from merge.sink import STATE
from merge.task import Merge
from tests.test_merge.interruption import content, half, run, work


def test_a_finished_merge_is_not_done_again(pair: tuple[Path, Path], out: Path) -> None:
    assert not run(work(pair, out)).already
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run(work(pair, out)).already
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(OutputError, match="other options"):
        run(work(pair, out, output_dtype="fp32"))


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
        half(copies, out)
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
    half(pair, out)
    with (out / STATE / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(OutputError, match="another process is merging"):
            run(work(pair, out))


def test_clean_removes_what_is_ours_and_nothing_else(pair: tuple[Path, Path], out: Path) -> None:
    half(pair, out)
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
