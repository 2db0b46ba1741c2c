"""Nobody talks the gate into a green verdict through its own files: evidence is ours or none, a report is of one run."""

import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import certify
from certify import launch
from certify.examination import Examination
from certify.inputs.claim import MANIFEST
from certify.inputs.folder import folder_digest
from certify.journal import EVIDENCE
from certify.key import PLACE, evidence_key
from certify.report.room import occupy
from tests.test_certify.front_checkpoint import TOUCHED, Question, make

WEIGHTS = "--level=weights"


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Question:
    return make(tmp_path_factory.mktemp("red"), red=True)


def run(question: Question, *more: str) -> int:
    return int(pytest.main([*launch.arguments(question.words), *more]))


def _forged(lines: list[bytes]) -> bytes:
    """Everything passed, under the tags that stand there."""
    return b"\n".join(line.replace(b'"failed"', b'"passed"') for line in lines) + b"\n"


def _resealed(lines: list[bytes]) -> bytes:
    """Everything passed, under the tags of another key."""
    bodies = [line[69:-1].replace(b'"failed"', b'"passed"') for line in lines]
    return b"".join(b'["%b", %b]\n' % (hmac.new(b"theirs", body, hashlib.sha256).hexdigest().encode(), body) for body in bodies)


def _plain(line: bytes) -> Callable[[list[bytes]], bytes]:
    return lambda lines: lines[0] + b"\n" + line + b"\n"


FORGED: dict[str, Callable[[list[bytes]], bytes]] = {
    "everything passed": _forged,
    "sealed with another key": _resealed,
    "a list as shard": _plain(b'{"shard": [], "tensors": "", "files": {}, "findings": {}}'),
    "nested deeply": _plain(b"[" * 100_000),
    "a huge number": _plain(b'["' + b"0" * 64 + b'", ' + b"9" * 10_000 + b"]"),
    "no UTF-8": _plain(b"\xff\xfe\x00"),
    "nothing": lambda _lines: b"\n\n",
}


def test_forged_or_damaged_evidence_is_none(red: Question, tmp_path: Path) -> None:
    honest, report = tmp_path / "honest", tmp_path / "report"
    assert run(red, WEIGHTS, f"--report={honest}") == 1
    lines = (honest / EVIDENCE).read_bytes().splitlines()
    assert len(lines) == 2
    for name, forge in FORGED.items():
        shutil.rmtree(report, ignore_errors=True)
        report.mkdir()
        (report / EVIDENCE).write_bytes(forge(lines))
        examination = Examination(certify.Request(red.base, red.merged, (red.adapter,), level="weights"), report)
        found = [finding for question in examination.of_tensors() if question.subject == TOUCHED for finding in question.ask()]
        assert "failed" in {finding.outcome.value for finding in found}, name
    assert run(red, WEIGHTS, f"--report={report}") == 1


def test_evidence_of_another_gate_is_none(red: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = certify.Request(red.base, red.merged, (red.adapter,), level="weights")
    one = Examination(request, tmp_path)
    assert one.journal is not None
    name, shard = next(iter(one.shards.items()))
    one.journal.record(name, shard.tensors, shard.files, {})
    same = Examination(request, tmp_path).journal
    assert same is not None
    assert same.recall(name, shard.tensors) == {}
    monkeypatch.setattr("certify.evidence.sources", lambda: "one line of the gate was changed")
    other = Examination(request, tmp_path).journal
    assert other is not None
    assert other.recall(name, shard.tensors) is None


def test_evidence_is_written_to_no_link(red: Question, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / EVIDENCE).symlink_to(tmp_path / "precious")
    assert run(red, WEIGHTS, f"--report={tmp_path / 'report'}") == 4
    assert (tmp_path / "precious").read_text() == "kept"
    assert EVIDENCE in capsys.readouterr().err


def test_the_key_is_ours_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    key = evidence_key([])
    assert key is not None
    assert len(key) == 32
    assert evidence_key([tmp_path / "elsewhere"]) == key, "made once"
    assert (tmp_path / PLACE).stat().st_mode & 0o777 == 0o600
    assert evidence_key([tmp_path]) is None, "a report that holds the key"
    (tmp_path / PLACE).chmod(0o640)
    assert evidence_key([]) is None, "others can read it"
    (tmp_path / PLACE).unlink()
    (tmp_path / PLACE).symlink_to("/dev/zero")
    assert evidence_key([]) is None
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    assert evidence_key([]) is None


def test_without_a_key_the_gate_judges_all_the_same(red: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    assert run(red, WEIGHTS, f"--report={tmp_path}") == 1
    assert not (tmp_path / EVIDENCE).exists()


# ---- the report directory


def test_a_report_is_of_one_run_at_a_time(red: Question, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = occupy(tmp_path)
    assert run(red, WEIGHTS, f"--report={tmp_path}") == 4
    assert "another run" in capsys.readouterr().err
    os.close(lock)
    assert run(red, WEIGHTS, f"--report={tmp_path}") == 1


def test_a_report_contains_nothing_that_is_judged(red: Question, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(red, f"--report={red.base.parent}") == 4
    assert f"contains {red.base}" in capsys.readouterr().err


def test_a_report_lies_apart_from_an_adapter_that_only_the_manifest_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The options do not name it, so that it is known only once the manifest is read; until then nothing may be cleared away there."""
    asked, desk = make(tmp_path), tmp_path / "desk"
    desk.mkdir()
    adapter = asked.adapter.rename(desk / "adapter")
    (tmp_path / "link").symlink_to(adapter)
    (adapter / "index.html").write_text("theirs, not an old report")
    digest = folder_digest(adapter)
    entry = {"path": "../desk/adapter", "digest": digest, "weight": 1.0}
    (asked.merged / MANIFEST).write_text(json.dumps({"adapters": [entry]}))
    words = launch.arguments([word for word in asked.words if not word.startswith("--adapter")] + [WEIGHTS])
    for report, told in ((adapter / "report", "lies inside"), (desk, "contains"), (tmp_path / "link", "lies inside")):
        assert int(pytest.main([*words, f"--report={report}"])) == 4, report
        assert f"{told} {adapter}" in capsys.readouterr().err
        assert folder_digest(adapter) == digest
        assert not (adapter / "report").exists()
    assert int(pytest.main([*words, f"--report={tmp_path / 'report'}"])) == 0, "elsewhere it may lie, and the manifest is enough"
