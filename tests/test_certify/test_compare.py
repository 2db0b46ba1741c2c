"""`lora-certify compare`: what changed between two certificates, and nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest

from certify import judge
from certify.signoff.compare import SHOWN, compare, text
from certify.signoff.stated import stated
from tests.test_certify.front_checkpoint import TOUCHED, make
from tests.test_certify.release import Release, call

SHARD = "model-00001-of-00002.safetensors"


def test_nothing_changed(signed: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [str(signed.certificate)] * 2
    assert call(["compare", *pair], monkeypatch) == 0
    assert capsys.readouterr().out == "Nothing changed: the same files, the same findings, the same versions.\n"
    assert call(["compare", *pair, "--json"], monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("same") is True
    assert not any(told.values())


def test_a_release_and_one_that_was_never_merged(
    signed: Release, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    question, red = make(tmp_path, red=True), tmp_path / "red.json"
    red.write_text(judge(question.base, question.adapter, question.merged).to_json())
    assert call(["compare", str(signed.certificate), str(red), "--json"], monkeypatch) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["values"]["verdict"] == ["CERTIFIED", "REJECTED"]
    assert told["values"]["checks.C4.failed"] == [0, 1]
    assert told["values"]["fidelity.retention"][1] == 0
    assert list(told["files"]) == [SHARD]
    assert [pair[0] for pair in told["failures"].values()] == [None] * 3
    assert set(told["failures"]) >= {f"C4 {TOUCHED}", f"C5 {TOUCHED}"}
    (ratio, kept), (then, left) = told["tensors"][TOUCHED]
    assert ratio < 1 < then
    assert kept > 0.99 > left == 0
    assert "values" in told
    assert not told["loading"]
    assert call(["compare", str(red), str(signed.certificate)], monkeypatch) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("verdict: REJECTED → CERTIFIED\n")
    assert f"failure C4 {TOUCHED}: gone: 254 of 256 elements" in shown
    assert f"tensor {TOUCHED}: error / bound 1.506e+04 → 0.9993, retention 0 → 1" in shown


def _changed(signed: Release, **fields: Any) -> dict[str, Any]:
    other = signed.statement
    other["predicate"].update(fields)
    return compare(stated(signed.certificate.read_bytes()), stated(json.dumps(other).encode()))


def test_versions_adapters_and_declared_differences(signed: Release) -> None:
    predicate = signed.statement["predicate"]
    accepted = {"code": "C2", "subject": "x", "sentence": "is missing", "reason": "so it is meant"}
    told = _changed(
        signed,
        versions=predicate["versions"] | {"peft": "0.99.0", "numpy": "2.0"},
        adapters=[predicate["adapters"][0] | {"weight": 0.5}],
        accepted=[accepted],
        undecided=[],
    )
    assert told["values"] == {
        "adapters.1.weight": [1.0, 0.5],
        "versions.peft": [predicate["versions"]["peft"], "0.99.0"],
        "versions.numpy": [None, "2.0"],
    }
    assert told["accepted"] == {"C2 x": [None, ["is missing"]]}
    assert "accepted C2 x: new: is missing" in text(told)
    assert "versions.numpy: (not stated) → 2.0" in text(told)
    assert "undecided C9 model.layers.0: no longer" in text(told)


def test_a_long_list_is_cut_for_readers_only(signed: Release) -> None:
    told = _changed(signed, failures=[{"code": "C3", "subject": f"tensor {number}", "sentence": "differs"} for number in range(30)])
    assert len(told["failures"]) == 30
    assert text(told) == [
        *(f"failure C3 tensor {number}: new: differs" for number in range(SHOWN)),
        "… and 10 more (failure); --json lists all",
    ]


def test_names_are_made_harmless(signed: Release) -> None:
    told = _changed(signed, failures=[{"code": "C3", "subject": "a\x1b[2Jb\n", "sentence": "\u202edne"}])
    assert text(told) == ["failure C3 a\\x1b[2Jb\\n: new: \\u202edne"]


@pytest.mark.parametrize(
    "spoiled",
    [
        "nonsense",
        '{"predicateType": "x"}',
        "{}",
        {"failures": 5},
        {"failures": [5]},
        {"failures": [{"code": "C4"}]},
        {"worst": {"subject": "x"}},
        {"accepted": [None]},
        {"undecided": "C9"},
    ],
)
def test_what_is_no_certificate_is_refused(
    spoiled: str | dict[str, Any], release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = release.room / "before.json"
    before.write_bytes(release.certificate.read_bytes())
    if isinstance(spoiled, str):
        release.certificate.write_text(spoiled)
    else:
        release.restate(lambda statement: statement["predicate"].update(spoiled))
    assert call(["compare", str(before), str(release.certificate)], monkeypatch) == 1
    assert capsys.readouterr().err.startswith("Refused: the certificate")
    assert call(["compare", str(before), "none"], monkeypatch) == 4


def test_deeply_nested_values_end_somewhere(signed: Release) -> None:
    deep: Any = "deep"
    for _ in range(100):
        deep = {"er": deep}
    assert len(_changed(signed, coverage=deep)["values"]) == 3
