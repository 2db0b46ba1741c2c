"""Declared differences: accepted with a reason and an owner, never hidden, and failing once nobody needs them."""

import json
from dataclasses import asdict
from datetime import date
from pathlib import Path

import pytest

from certify import accept
from certify.accept import AcceptList, acceptable
from certify.errors import UsageError
from certify.finding import Finding, Outcome

TODAY = date(2027, 1, 15)
HEAD = '[[accept]]\nreason = "meant"\nowner = "ana"\n'


def listed(tmp_path: Path, text: str) -> AcceptList:
    path = tmp_path / "accept.toml"
    path.write_text(text)
    return accept.read(path)


def failed(code: str, subject: str, **figures: bool | str) -> Finding:
    return Finding(code, subject, Outcome.FAILED, "as it is", figures)


MTP = [failed("C2", f"model.layers.61.{name}.weight", problem="missing") for name in ("eh_proj", "enorm")]
OTHER = failed("C4", "model.layers.0.mlp.up_proj.weight")
SOUND = Finding("C2", "lm_head.weight", Outcome.PASSED)


def test_accepted_differences_leave_the_findings_and_are_told(tmp_path: Path) -> None:
    entries = listed(tmp_path, HEAD + 'pattern = "model.layers.61.*"\ncodes = ["C2"]\nexpires = 2027-03-31\n')
    left, accepted, own = entries.apply([*MTP, OTHER, SOUND], TODAY)
    assert left == [OTHER, SOUND]
    assert [asdict(one) for one in accepted] == [
        {"subject": finding.subject, "code": "C2", "sentence": "as it is", "pattern": "model.layers.61.*", "reason": "meant",
         "owner": "ana", "expires": "2027-03-31"}
        for finding in MTP
    ]  # fmt: skip
    json.dumps([asdict(one) for one in accepted])
    assert [(finding.code, finding.outcome) for finding in own] == [("C0", Outcome.PASSED)]
    assert len(entries.digest) == 64


def test_an_entry_is_for_its_codes_alone(tmp_path: Path) -> None:
    entries = listed(tmp_path, HEAD + 'pattern = "model.layers.*"\ncodes = ["C3", "C4"]\n')
    assert entries.apply([*MTP, OTHER], TODAY)[0] == MTP


def test_an_unused_entry_fails_where_all_was_examined(tmp_path: Path) -> None:
    entries = listed(tmp_path, HEAD + 'pattern = "model.layers.9.*"\n')
    left, accepted, own = entries.apply([OTHER, SOUND], TODAY)
    assert (left, accepted) == ([OTHER, SOUND], [])
    assert own[0].outcome is Outcome.FAILED
    assert own[0].subject == "accept: model.layers.9.*"
    assert "ana must take it out" in own[0].sentence
    assert entries.apply([OTHER], TODAY, whole=False)[2][0].outcome is Outcome.PASSED


def test_a_pattern_that_matches_only_what_passed_is_unused(tmp_path: Path) -> None:
    assert listed(tmp_path, HEAD + 'pattern = "lm_head.*"\n').apply([SOUND], TODAY)[2][0].outcome is Outcome.FAILED


@pytest.mark.parametrize(("today", "holds"), [(date(2027, 3, 31), True), (date(2027, 4, 1), False)])
def test_an_expired_entry_accepts_nothing_and_fails(tmp_path: Path, today: date, holds: bool) -> None:
    entries = listed(tmp_path, HEAD + 'pattern = "model.layers.61.*"\nexpires = 2027-03-31\n')
    left, accepted, own = entries.apply(MTP, today)
    assert (left == [], len(accepted)) == (holds, 2 if holds else 0)
    assert (own[0].outcome is Outcome.PASSED) is holds
    assert holds or "expired on 2027-03-31" in own[0].sentence


def test_entries_that_overlap_are_all_used(tmp_path: Path) -> None:
    text = HEAD + 'pattern = "model.layers.61.*"\n' + HEAD + 'pattern = "*.eh_proj.weight"\n'
    left, accepted, own = listed(tmp_path, text).apply(MTP, TODAY)
    assert (left, len(accepted)) == ([], 2)
    assert {finding.outcome for finding in own} == {Outcome.PASSED}


@pytest.mark.parametrize(
    "finding",
    [
        failed("C6", "self-check"),
        failed("C0", "accept: x"),
        failed("C1", "model-00001-of-00002.safetensors"),
        failed("C1", "base: model.safetensors"),
        failed("C3", "x", unreadable=True),
        failed("C4", "x", unreadable=True),
        failed("C7", "base: identity"),
        Finding("C3", "x", Outcome.NOT_INTERPRETED, "unknown"),
        Finding("C5", "x", Outcome.UNDECIDED, "cannot tell"),
        Finding("C2", "x", Outcome.PASSED),
    ],
    ids=lambda finding: f"{finding.code} {finding.subject} {finding.outcome.value}",
)
def test_what_cannot_be_accepted(tmp_path: Path, finding: Finding) -> None:
    entries = listed(tmp_path, HEAD + 'pattern = "[a-z]*x*"\n' + HEAD + 'pattern = "*e*"\n')
    assert not acceptable(finding)
    assert entries.apply([finding], TODAY)[0] == [finding]


def test_a_stray_file_can_be_accepted(tmp_path: Path) -> None:
    entries = listed(tmp_path, HEAD + 'pattern = "original/*"\n')
    assert entries.apply([failed("C1", "original/consolidated.00.pth", stray=True)], TODAY)[0] == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "accept"),
        ("accept = []", "accept"),
        ("accept = [3]", "entry 1: a table"),
        ("not toml", "accept.toml"),
        ('title = "x"\n' + HEAD + 'pattern = "a"\n', "'title' is not known"),
        (HEAD, "pattern is None"),
        (HEAD + 'pattern = " "\n', "pattern is ' '"),
        (HEAD + "pattern = 3\n", "pattern is 3"),
        (HEAD + 'pattern = "*"\n', "names nothing"),
        (HEAD + 'pattern = "[a-z]*.*"\n', "names nothing"),
        ('[[accept]]\npattern = "a"\nowner = "x"\n', "reason is None"),
        ('[[accept]]\npattern = "a"\nreason = "x"\n', "owner is None"),
        (HEAD + 'pattern = "a"\ncode = "C2"\n', "code is not known"),
        (HEAD + 'pattern = "a"\ncodes = "C2"\n', "codes is 'C2'"),
        (HEAD + 'pattern = "a"\ncodes = []\n', "codes is []"),
        (HEAD + 'pattern = "a"\ncodes = ["C6"]\n', "codes is ['C6']"),
        (HEAD + 'pattern = "a"\ncodes = ["C11"]\n', "codes is ['C11']"),
        (HEAD + 'pattern = "a"\nexpires = "2027-01-01"\n', "expires is '2027-01-01'"),
        (HEAD + 'pattern = "a"\nexpires = 2027-01-01T10:00:00\n', "expires is datetime"),
        ((HEAD + 'pattern = "a"\n') * 2, "'a' is there twice"),
    ],
)
def test_what_is_not_understood_is_a_usage_error(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UsageError, match="accept") as error:
        listed(tmp_path, text)
    assert told in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"#" * (accept.LIST_MAX + 1))
    for name in ("none", "latin", "large", "."):
        with pytest.raises(UsageError):
            accept.read(tmp_path / name)
