"""The page from a certificate alone: whoever wrote the certificate, and whatever a checkpoint calls its tensors."""

import copy
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from certify import report
from certify.__main__ import main
from certify.finding import Finding, Outcome
from certify.overview import overview
from certify.overview.names import braces, joined, patterns, place
from certify.report import charts, markdown, page, read
from certify.report.junit import BRIEF, SPOKEN
from certify.report.page import MEANINGS
from certify.report.running import Running
from certify.verdict import EXIT_CODES, Verdict
from tests.test_certify.test_front_report import HOSTILE, certificate

LONG = "model.layers.0." + "x" * 10_000


@pytest.fixture
def statement() -> dict[str, Any]:
    return whole([*HOSTILE, LONG])


def whole(names: list[str]) -> dict[str, Any]:
    made = certificate(Verdict.REJECTED, names).statement
    return {"_type": read.STATEMENT, "predicateType": read.PREDICATE, **copy.deepcopy(made)}


def render(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["lora-certify", "render", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_exit_codes_of_the_page_are_those_of_the_gate() -> None:
    assert {verdict: code for verdict, (_, _, code) in MEANINGS.items()} == {verdict.value: code for verdict, code in EXIT_CODES.items()}


def test_render_makes_the_page_from_the_certificate_alone(
    statement: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "certificate.json"
    path.write_bytes(json.dumps(statement).encode())
    assert render(monkeypatch, path) == 0
    assert render(monkeypatch, path, "--out", tmp_path / "other.html") == 0
    made = (tmp_path / report.PAGE).read_text()
    assert made == (tmp_path / "other.html").read_text()
    assert LONG not in made, "a name of 10,000 characters is cut"
    assert "<h1>REJECTED" in made


SPOILED: dict[str, Callable[[Any], object]] = {
    "type": lambda s: s.update(_type="x"),
    "old": lambda s: s["predicate"].pop("overview"),
    "verdict": lambda s: s["predicate"].update(verdict="FINE"),
    "contradiction": lambda s: s["predicate"].update(verdict="CERTIFIED"),
    "negative": lambda s: s["predicate"]["coverage"].update(run=-1),
    "bool": lambda s: s["predicate"]["coverage"].update(run=True),
    "kind": lambda s: s["predicate"]["worst"].append({"subject": [], "ratio": 1, "retention": None}),
    "code": lambda s: s["predicate"]["checks"].update({"Cx": s["predicate"]["checks"]["C4"]}),
    "nan": lambda s: s["predicate"]["fidelity"].update(min_retention=float("nan")),
    "huge": lambda s: s["predicate"]["base"].update(bytes=10**400),
    "subject": lambda s: s["subject"].append("x"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_an_old_or_hostile_certificate_is_a_usage_error(
    how: str, statement: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    SPOILED[how](statement)
    (tmp_path / "c.json").write_text(json.dumps(statement))
    assert render(monkeypatch, tmp_path / "c.json") == 4
    assert "no certificate that this version can show" in capsys.readouterr().err
    assert not (tmp_path / report.PAGE).exists()


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"a":1,"a":2}', b"\xff", b'{"a":' * 5000], ids=range(6))
def test_what_is_no_certificate_is_a_usage_error(raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.json").write_bytes(raw)
    assert render(monkeypatch, tmp_path / "c.json") == 4
    assert render(monkeypatch, tmp_path / "absent.json") == 4


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value[:2])
        return [leaf for key, item in items for leaf in leaves(item, (*path, key))]
    return [path]


@pytest.mark.parametrize("value", ["<script>x</script>\u202e\ud800", -1, 1e308, None, [], {}])
def test_any_value_anywhere_is_shown_harmlessly_or_refused(value: Any) -> None:
    statement = whole(HOSTILE[:2])
    for path in leaves(statement):
        other = copy.deepcopy(statement)
        where = other
        for key in path[:-1]:
            where = where[key]
        where[path[-1]] = value
        if read.refusal(other) is None:
            made = page.render(other)
            assert "<script" not in made
            assert not {"\u202e", "\ud800"} & set(made)
            assert "<script" not in markdown.render(other)


def test_patterns_stand_for_exactly_their_names() -> None:
    experts = [f"model.layers.61.mlp.experts.{number}.gate_proj.weight" for number in range(256)]
    assert patterns([*experts, "lm_head.weight"]) == [
        ("model.layers.61.mlp.experts.{0..255}.gate_proj.weight", 256),
        ("lm_head.weight", 1),
    ]
    assert patterns(["a.1.b.2", "a.1.b.3", "a.4.b.2"]) == [("a.1.b.{2,3}", 2), ("a.4.b.2", 1)]
    assert joined([("e.7.up.w", 1), ("e.7.down.w", 1), ("x", 1)]) == [("e.7.{down,up}.w", 2), ("x", 1)]
    assert braces([1, 2, 3, 9]) == "{1..3,9}"
    assert place("model.layers.61.mlp.experts.7.up.weight").kind == "mlp.experts.*.up.weight"


def test_one_cause_is_one_group_and_its_consequences_are_counted() -> None:
    lost = [Finding("C2", f"m.layers.1.{kind}", Outcome.FAILED, "missing", {"problem": "missing"}) for kind in "abcd"]
    kept = [Finding("C2", f"m.layers.{layer}.{kind}", Outcome.PASSED) for layer in (0, 2) for kind in "abcd"]
    wrong = [Finding("C4", f"m.layers.{layer}.a", Outcome.FAILED, f"x {layer}", {"cause": f"merged {layer} times"}) for layer in (0, 2)]
    told = [Finding("C5", "m.layers.0.a", Outcome.FAILED, "x"), Finding("C9", "m.layers.0", Outcome.FAILED, "y")]
    groups = overview([*lost, *kept, *wrong, *told], [])["faults"]
    assert groups["total"] == 2
    assert groups["groups"][0]["places"] == [{"pattern": "m.layers.1.*", "subjects": 4}]
    assert groups["groups"][1]["places"] == [{"pattern": "m.layers.{0,2}.a", "subjects": 2}]
    assert groups["groups"][1]["also"] == {"C5": 1, "C9": 1}


def test_a_group_says_of_all_its_members_only_what_is_true_of_all() -> None:
    one, other = "model.layers.4.mlp.experts.7.up_proj.weight", "model.layers.4.mlp.experts.9.up_proj.weight"
    swapped = [
        Finding("C4", here, Outcome.FAILED, "s", {"cause": f"this is {there}, merged"}) for here, there in ((one, other), (other, one))
    ]
    retyped = [
        Finding(
            "C2",
            f"model.layers.{layer}.norm.weight",
            Outcome.FAILED,
            "stored as F32; BF16 was expected (the base has BF16)",
            {"problem": "dtype"},
        )
        for layer in (1, 2)
    ]
    causes = [[group["cause"] for group in overview(found, [])["faults"]["groups"]] for found in (swapped, swapped[:1], retyped)]
    assert causes == [["this is another tensor, merged"], [f"this is {other}, merged"], ["stored as F32; BF16 was expected"]]


def test_a_killed_run_leaves_a_junit_file_that_is_red(tmp_path: Path) -> None:
    running = Running(tmp_path / "junit.xml", 100)
    for number, name in enumerate(HOSTILE):
        running.add([Finding("C2", name, Outcome.PASSED), Finding("C4", name, Outcome.FAILED, name)])
        running._write()
        root = ET.parse(tmp_path / "junit.xml").getroot()
        assert len(list(root.iter("testcase"))) == number + 2
        assert len(list(root.iter("error"))) == 1


def test_junit_of_many_failures_stays_small(tmp_path: Path) -> None:
    made = certificate(names=["x"])
    names = [f"model.layers.{number % 61}.mlp.experts.{number}.gate_proj.weight" for number in range(9_200)]
    found = [Finding("C4", name, Outcome.FAILED, f"{name} is wrong\n" * 50, {"beyond": 3}) for name in names]
    found += [Finding("C2", name, Outcome.PASSED) for name in names]
    report.write(made, found, tmp_path)
    assert (tmp_path / "junit.xml").stat().st_size < 3e6 + SPOKEN * 2000
    brief = list(ET.parse(tmp_path / "junit.xml").iter("failure"))[-1]
    assert brief.text is None
    assert len(brief.attrib["message"]) <= BRIEF


def test_an_answer_that_is_not_finite_does_not_stretch_the_curve() -> None:
    unit = {"outcome": "passed", "err_merged": 2e-3, "err_base": 0.2, "err_rounding": 1e-3}
    units = [unit | {"unit": f"model.layers.{layer}"} for layer in range(4)]
    lost = unit | {"unit": "model.layers.4", "outcome": "failed", "err_merged": sys.float_info.max}
    drawn, alone = charts.curve([*units, lost]), charts.curve([lost | {"err_base": None, "err_rounding": None}])
    assert drawn is not None
    assert (drawn.low, drawn.high) == ("1e-3", "1")
    assert [y for _, y, _ in drawn.failed] == [4.0]
    assert alone is not None
