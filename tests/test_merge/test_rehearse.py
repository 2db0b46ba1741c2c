"""`rehearse` as a person calls it: a twin of real files, judged by the gate's own command, with a defect that it must see."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from merge.proxies import make_adapter, make_checkpoint


def rehearse(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "merge", "rehearse", *map(str, words)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A quantised base with experts, and an adapter trained on it."""
    room = tmp_path_factory.mktemp("rehearse")
    base = make_checkpoint("deepseek-v3-fp8", room / "base")
    return base, make_adapter(base, room / "adapter")


def test_a_twin_is_certified_a_defect_is_caught_and_the_disk_is_foretold(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    words = ["--base", base, "--adapter", adapter, "--output-dtype", "same"]
    done = rehearse(*words, "--out", tmp_path / "twin", "--sample", 2, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["gate"]["verdict"] == "CERTIFIED"
    assert found["defect"]["verdict"] == "REJECTED"
    assert [found["defect"]["unmerged"], "C4"] in [[subject, code] for code, subject, _ in found["defect"]["failures"]]
    assert set(found["forecast"]["retention"]) >= {"nearest", "faithful"}
    subprocess.run([sys.executable, "-m", "merge", "run", *map(str, words), "--out", str(tmp_path / "out"), "--quiet"], check=True)
    foretold = json.loads((tmp_path / "twin" / "forecast.json").read_text())["disk"]["files"]
    assert foretold == {name: (tmp_path / "out" / name).stat().st_size for name in foretold}
    assert {path.name for path in (tmp_path / "out").iterdir()} - set(foretold) == {"merge-manifest.json", "merge-run.jsonl"}


def test_what_cannot_be_rehearsed_is_refused_and_nothing_is_left(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    for words, code, sentence in (
        (["--base", base, "--adapter", adapter], 2, "--output-dtype bf16"),
        (["--base", base, "--adapter", adapter, "--output-dtype", "same", "--out", tmp_path / "full"], 3, "is not an empty directory"),
        (["--base", tmp_path / "none", "--adapter", adapter, "--out", tmp_path / "twin"], 3, "none"),
    ):
        done = rehearse(*words)
        assert done.returncode == code, done.stderr
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    assert not (tmp_path / "twin").exists()
