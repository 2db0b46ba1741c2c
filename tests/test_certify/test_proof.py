"""Nobody talks the gate into a green verdict: not by hiding a file, not by writing while it reads, not by what it failed to find."""

import hashlib
import json
import os
import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import certify
from certify import launch
from certify.examination import Examination
from certify.finding import Finding
from certify.inputs.folder import every_file
from certify.journal import EVIDENCE
from certify.tensors import Tensors
from tests.test_certify.front_checkpoint import TOUCHED, Question, make

WEIGHTS = "--level=weights"
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def sound(tmp_path: Path) -> Question:
    return make(tmp_path / "sound")


def run(question: Question, *more: str) -> int:
    return int(pytest.main([*launch.arguments(question.words), *more]))


def failures(report: Path) -> dict[str, str]:
    """Subject → sentence."""
    told = json.loads((report / "certificate.json").read_text())["predicate"]["failures"]
    return {failure["subject"]: failure["sentence"] for failure in told}


# ---- what was judged is what the certificate names


def _apart(checkpoint: Path, folder: str, real: Path) -> dict[str, str]:
    """Its shards lie in a folder of their own, hidden or linked; its weight map then."""
    index = json.loads((checkpoint / INDEX).read_text())
    real.mkdir()
    for file in set(index["weight_map"].values()):
        shutil.move(checkpoint / file, real / file)
    if folder == "linked":
        (checkpoint / folder).symlink_to(real)
    else:
        shutil.move(real, checkpoint / folder)
    index["weight_map"] = {name: f"{folder}/{file}" for name, file in index["weight_map"].items()}
    (checkpoint / INDEX).write_text(json.dumps(index))
    return dict(index["weight_map"])


@pytest.mark.parametrize("folder", [".hidden", "linked"])
def test_every_judged_file_is_a_subject(folder: str, sound: Question, tmp_path: Path) -> None:
    merged = sound.merged
    (merged / "loop").symlink_to(merged)
    files = _apart(merged, folder, tmp_path / "elsewhere")
    assert certify.judge(sound.base, sound.adapter, merged, level="weights").exit_code == 1, "the base's lie beside their index"
    _apart(sound.base, "shards", tmp_path / "base")
    made = certify.judge(sound.base, sound.adapter, merged, level="weights")
    assert made.exit_code == 0, made.reason
    subjects = {file["name"]: file["digest"]["sha256"] for file in made.statement["subject"]}
    assert sorted(subjects) == sorted({*files.values(), "config.json", INDEX})
    assert all(digest == hashlib.sha256((merged / name).read_bytes()).hexdigest() for name, digest in subjects.items())


def test_a_file_is_listed_once(tmp_path: Path) -> None:
    (tmp_path / "b" / "inner").mkdir(parents=True)
    (tmp_path / "b" / "inner" / "file").touch()
    (tmp_path / "a").symlink_to(tmp_path / "b" / "inner")
    (tmp_path / "b" / "up").symlink_to(tmp_path.parent)
    assert every_file(tmp_path) == ["b/inner/file"]


def test_a_shard_of_the_base_is_covered_by_its_digest(sound: Question) -> None:
    (sound.base / ".w").mkdir()
    shutil.move(sound.base / SHARD, sound.base / ".w")
    (sound.base / INDEX).write_text((sound.base / INDEX).read_text().replace(SHARD, f".w/{SHARD}"))
    made = certify.judge(sound.base, sound.adapter, sound.merged, level="weights")
    assert made.exit_code == 1
    assert "digest" in made.reason


def _flip(path: Path) -> None:
    """Change the last byte, and put the time of writing back."""
    before, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


MEANWHILE: dict[str, tuple[Callable[[Question], object], str, str]] = {
    "a merged shard": (lambda q: _flip(q.merged / SHARD), SHARD, "changed"),
    "a shard of the base": (lambda q: _flip(q.base / SHARD), f"base: {SHARD}", "changed"),
    "a side file": (lambda q: (q.merged / "config.json").write_text("{}"), "config.json", "changed"),
    "the adapter": (lambda q: _flip(q.adapter / "adapter_model.safetensors"), "adapter: adapter_model.safetensors", "changed"),
    "one more file": (lambda q: (q.merged / "modeling.py").touch(), "modeling.py", "nobody has judged it"),
    "one file less": (lambda q: (q.merged / SHARD).unlink(), SHARD, "removed"),
}


@pytest.mark.parametrize("what", MEANWHILE)
def test_what_changes_while_it_is_judged_is_never_certified(
    what: str, sound: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, subject, told = MEANWHILE[what]
    examine, changed = Tensors.examine, list[str]()

    def meanwhile(self: Tensors, name: str) -> list[Finding]:
        found = examine(self, name)
        if name not in self.merged.headers[SHARD].entries and not changed:  # the first shard is judged
            changed.append(name)
            change(sound)
        return found

    monkeypatch.setattr(Tensors, "examine", meanwhile)
    assert run(sound, WEIGHTS, f"--report={tmp_path / 'report'}") == 1
    assert told in failures(tmp_path / "report")[subject]
    monkeypatch.undo()
    if what == "a merged shard":
        assert run(sound, WEIGHTS, f"--report={tmp_path / 'report'}") == 1, "no evidence of the old bytes speaks for the new ones"


def test_evidence_is_bound_to_judged_bytes_alone(sound: Question, tmp_path: Path) -> None:
    """Evidence that is recorded after the file was exchanged would make the next run green."""
    examination = Examination(certify.Request(sound.base, sound.merged, (sound.adapter,), level="weights"), tmp_path)
    journal, shard = examination.journal, examination.shards[SHARD]
    assert journal is not None
    _flip(sound.merged / SHARD)
    journal.record(SHARD, shard.tensors, shard.files, {})
    assert not (tmp_path / EVIDENCE).exists()


# ---- what was not found


@pytest.mark.parametrize("left", [0, 1])
def test_a_tensor_without_its_findings_is_incomplete(left: int, sound: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`left`: how many of the tensor's findings there are; one is C2 alone."""
    examine = Tensors.examine
    monkeypatch.setattr(Tensors, "examine", lambda self, name: examine(self, name)[: left if name == TOUCHED else None])
    assert run(sound, WEIGHTS, f"--report={tmp_path / 'report'}") == 10
    made = certify.judge(sound.base, sound.adapter, sound.merged, level="weights")
    assert made.exit_code == 10
    assert left == 0 or TOUCHED in made.reason


@pytest.mark.parametrize("error", [ValueError, SystemExit])
@pytest.mark.parametrize("step", ["__init__", "questions", "certificate"])
def test_judge_turns_every_crash_into_an_error(
    step: str, error: type[BaseException], sound: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise error("out of luck")

    monkeypatch.setattr(Examination, step, crash)
    made = certify.judge(sound.base, sound.adapter, sound.merged, level="weights")
    assert made.exit_code == 3
    assert "out of luck" in made.reason
    assert json.loads(made.to_json())["predicate"]["verdict"] == "ERROR"


# ---- both reports say the same, in one process and in several


def _faint(question: Question) -> list[str]:
    """The delta in two adapters of half the weight each, too small for the grid: every rounding is right, and the fine-tune is lost."""
    file = question.adapter / "adapter_model.safetensors"
    adapter = {name: tensor * (5e-4 if "lora_B" in name else 1) for name, tensor in load_file(file).items()}
    save_file(adapter, file)
    second = question.adapter.with_name("second")
    shutil.copytree(question.adapter, second)
    base, merged = load_file(question.base / SHARD), load_file(question.merged / SHARD)
    a, b = (next(tensor for name, tensor in adapter.items() if letter in name) for letter in ("lora_A", "lora_B"))
    merged[TOUCHED] = (base[TOUCHED].float() + 2.0 * (b @ a)).bfloat16()
    save_file(merged, question.merged / SHARD, metadata={"format": "pt"})
    return [f"--adapter={second}", "--weight=0.5", "--weight=0.5", "--min-retention=0.9"]


def test_only_the_whole_adapter_fails_and_every_report_says_so(sound: Question, tmp_path: Path) -> None:
    words = _faint(sound)
    for name, more in {"one": [], "two": ["-n2"]}.items():
        assert run(sound, *words, *more, f"--report={tmp_path / name}", f"--junitxml={tmp_path / name}.xml") == 1
        roots = [ET.parse(file).getroot() for file in (tmp_path / name / "junit.xml", tmp_path / f"{name}.xml")]
        for root in roots:
            assert [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None] == ["C8 adapter"]
        for count in ("tests", "failures", "errors", "skipped"):
            assert len({suite.get(count) for root in roots for suite in root.iter("testsuite")}) == 1, count
    for file in ("certificate.json", "index.html"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_killed_worker_is_an_error(sound: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = f"import os, signal\ndef pytest_runtest_logstart(nodeid):\n    if os.getppid() == {os.getpid()} and 'q_proj' in nodeid: "
    (tmp_path / "killer.py").write_text(killer + "os.kill(os.getpid(), signal.SIGKILL)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("xdist.workermanage._sys_path", [*sys.path])  # what workers start with, as it was when xdist was imported
    assert run(sound, WEIGHTS, "-n1", "-p", "killer", f"--report={tmp_path / 'report'}") == 3
    reason = json.loads((tmp_path / "report" / "certificate.json").read_text())["predicate"]["reason"]
    assert TOUCHED in reason
    assert "crashed" in reason
