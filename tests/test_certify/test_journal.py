"""The gate's journal and digests: evidence is taken up again only where it was found in the very same bytes."""

import hashlib
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import merge
from certify.examination import Examination
from certify.finding import Finding, Outcome
from certify.inputs.digests import Digests
from certify.journal import EVIDENCE, Journal
from certify.request import Request

FOUND = {"a.weight": [Finding("C2", "a.weight", Outcome.PASSED), Finding("C3", "a.weight", Outcome.FAILED, "differs", {"first": 3})]}


@pytest.mark.parametrize("order", ["as stored", "backwards", "twice", "with gaps", "at random"])
def test_a_digest_taken_while_reading_is_that_of_the_file(order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certify.inputs.digests.GAP", 8000)
    path, data = tmp_path / "file", random.Random(0).randbytes(100_003)
    path.write_bytes(data)
    steps = [(start, data[start : start + 997]) for start in range(0, len(data), 997)]
    reads = {"as stored": steps, "backwards": steps[::-1], "twice": [*steps[:40], *steps], "with gaps": steps[3::7], "at random": steps[:]}
    random.Random(1).shuffle(reads["at random"])
    digests = Digests()
    for start, piece in reads[order]:
        digests.saw(path, start, piece)
    assert (path in {Path(name) for name in digests.news()}) is (order in ("as stored", "twice"))
    assert digests.of(path) == hashlib.sha256(data).hexdigest()
    assert list(digests.news()) == ([] if order in ("as stored", "twice") else [str(path)])


def _journal(room: Path, terms: object = "terms", digest: str = "1", key: bytes = b"ours") -> Journal:
    return Journal(room, key, terms, lambda _label: digest)


def test_evidence_comes_back_as_it_was_found(tmp_path: Path) -> None:
    _journal(tmp_path).record("shard", ["a.weight"], ["merged/shard"], FOUND)
    assert _journal(tmp_path).recall("shard", ["a.weight"]) == FOUND


@pytest.mark.parametrize("change", [{"terms": "others"}, {"digest": "2"}, {"key": b"theirs"}])
def test_evidence_of_other_terms_or_bytes_or_of_somebody_else_is_none(change: dict[str, Any], tmp_path: Path) -> None:
    _journal(tmp_path).record("shard", ["a.weight"], ["merged/shard"], FOUND)
    assert _journal(tmp_path, **change).recall("shard", ["a.weight"]) is None


def test_evidence_of_other_tensors_or_another_shard_is_none(tmp_path: Path) -> None:
    _journal(tmp_path).record("shard", ["a.weight"], ["merged/shard"], FOUND)
    assert _journal(tmp_path).recall("shard", ["a.weight", "b.weight"]) is None
    assert _journal(tmp_path).recall("other", ["a.weight"]) is None


def test_a_torn_line_is_no_evidence_and_is_written_over(tmp_path: Path) -> None:
    first = _journal(tmp_path)
    first.record("one", [], ["merged/one"], FOUND)
    first.record("two", [], ["merged/two"], FOUND)
    whole = (tmp_path / EVIDENCE).read_bytes()
    for size in range(whole.index(b"\n") + 2, len(whole)):
        (tmp_path / EVIDENCE).write_bytes(whole[:size])
        torn = _journal(tmp_path)
        assert torn.recall("two", []) is None
        torn.record("one", [], ["merged/one"], FOUND)
        torn.record("two", [], ["merged/two"], FOUND)
        assert (tmp_path / EVIDENCE).read_bytes() == whole


class Counted(Examination):
    """Counts the tensors that are really examined."""

    def __init__(self, request: Request, report: Path) -> None:
        super().__init__(request, report)
        self.asked: list[str] = []
        inner = self.tensors.examine

        def examine(name: str) -> list[Finding]:
            self.asked.append(name)
            return inner(name)

        self.tensors.examine = examine  # type: ignore[method-assign]

    def judge(self) -> list[list[Finding]]:
        """All tensors, the journal kept as the gate keeps it."""
        found: dict[str, dict[str, list[Finding]]] = {}
        for question in self.of_tensors():
            found.setdefault(question.group, {})[question.subject] = question.ask()
        for name, shard in self.shards.items():
            assert self.journal is not None
            self.journal.record(name, shard.tensors, shard.files, found[name])
        return [findings for group in found.values() for findings in group.values()]


def test_a_repaired_shard_is_judged_again_and_no_other(llama: Any, tmp_path: Path) -> None:
    merged, report = tmp_path / "merged", tmp_path / "report"
    report.mkdir()
    merge.merge(llama.base, llama.adapter, merged)
    sound = sorted(merged.glob("model-*.safetensors"))[1]
    tensors = load_file(sound)
    shutil.copy(sound, tmp_path / "kept")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, sound, metadata={"format": "pt"})
    request = Request(llama.base, merged, (llama.adapter,), level="weights")
    first = Counted(request, report)
    told = first.judge()
    assert len(first.asked) == len(first.places)
    again = Counted(request, report)
    assert (again.judge(), again.asked) == (told, [])
    shutil.copy(tmp_path / "kept", sound)
    repaired = Counted(request, report)
    told = repaired.judge()
    assert set(repaired.asked) == set(tensors)
    assert all(finding.outcome is Outcome.PASSED for findings in told for finding in findings)
    assert Counted(replace(request, criterion="peft"), report).judge() != []
    assert len((report / EVIDENCE).read_text().splitlines()) == len(repaired.shards)  # other terms: begun anew


def test_digests_cost_no_reading_of_their_own(llama: Any, tmp_path: Path) -> None:
    merge.merge(llama.base, llama.adapter, tmp_path / "merged")
    examination = Examination(Request(llama.base, tmp_path / "merged", (llama.adapter,), level="modules"))
    for question in examination.of_tensors():
        question.ask()
    known = examination.digests.news()
    for side in (llama.base, tmp_path / "merged"):
        for path in side.glob("model-*.safetensors"):
            assert known[str(path)] == hashlib.sha256(path.read_bytes()).hexdigest()
