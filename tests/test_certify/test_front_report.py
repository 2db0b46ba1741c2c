"""The report says what the certificate says, to anybody, whatever a checkpoint calls its tensors."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from certify import launch, report
from certify.checks.c8_fidelity import distribution
from certify.finding import Finding, Outcome
from certify.overview import overview
from certify.report import summary
from certify.report.text import LINES, identifier, paragraph, printable
from certify.verdict import Certificate, Verdict

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=https://example.org/x.png>',
    "{{ 7 * 7 }}",
    "a\x1b[2Jb",
    "line\nbreak",
    "\u202egnirts",
    "\ud800",
    "]]>&lt;",
    "nul\x00",
    "",
]


def certificate(verdict: Verdict = Verdict.REJECTED, names: list[str] = HOSTILE) -> Certificate:
    """A judgement about tensors with such names: C2 passed for all of them, C4 failed."""
    findings = [Finding("C4", name, Outcome.FAILED, f"{name} is wrong\n" * 50, {"beyond": 3, "worst": name}) for name in names]
    findings += [Finding("C2", name, Outcome.PASSED) for name in names]
    side = {"name": HOSTILE[0], "files": 2, "bytes": 1 << 20}
    table = {"title": "x", "passed": 1, "failed": len(names), "not_interpreted": 0, "undecided": 0}
    failures = [{"code": f.code, "subject": f.subject, "outcome": "failed", "sentence": f.sentence, "figures": f.figures} for f in findings]
    predicate: dict[str, Any] = {
        "verdict": verdict.value,
        "level": "weights",
        "reason": "so it is.",
        "criterion": "nearest",
        "output_dtype": "same",
        "base": side | {"digest": "b" * 64, "identity": {"status": "unknown", "stated": [HOSTILE[0]], "revision": [""], "digest": None}},
        "merged": side,
        "adapters": [{"name": HOSTILE[1], "digest": "d" * 64, "weight": 1.0, "claimed": True, "tensors": 2, "consumed": 2}],
        "checks": {"C10": table, "C4": table},
        "not_judged": [{"code": "C5", "title": "module behaviour", "sentence": "later"}],
        "self_check": {"armed": 2, "planted": 2, "not_armable": [HOSTILE[0]], "hypothesis_examples": 300},
        "undecided": [],
        "accepted": [],
        "screen": None,
        "coverage": {"expected": 10, "run": 10},
        "tensors": {"untouched": 1, "merged": 9, "missing": 0},
        "fidelity": distribution(findings, 0.5),
        "overview": overview(findings, []),
        "failures": failures[: len(names)],
        "failures_total": len(names),
        "worst": [{"subject": name, "ratio": 1.5, "retention": None} for name in names],
        "versions": {"python": "3.11"},
        "command": f"lora-certify run --base={HOSTILE[1]}",
    }
    statement = {"subject": [{"name": name, "digest": {"sha256": "0" * 64}} for name in names], "predicate": predicate}
    return Certificate(verdict, "weights", "so it is.", statement, tuple(findings))


class Tags(HTMLParser):
    """Every tag of a page with its attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_closed_and_escapes(tmp_path: Path) -> None:
    made = certificate()
    report.write(made, made.findings, tmp_path)
    source = (tmp_path / "index.html").read_text()
    page = Tags()
    page.feed(source)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "link", "iframe", "object", "base", "form"})
    assert not [attrs for _, attrs in page.tags if {"src", "onload", "onclick", "style"} & attrs.keys()]
    assert all((attrs.get("href") or "#").startswith("#") for _, attrs in page.tags)
    assert not re.search(r"url\(|@import", source)
    assert HOSTILE[0] in page.text
    assert HOSTILE[2] in page.text, "a name is not a template"
    assert "\\x1b[2J" in page.text
    assert not set("\x1b\x00\u202e") & set(source)
    assert page.text.index("C4") < page.text.index("C10")


@pytest.mark.parametrize("verdict", Verdict)
def test_page_leads_with_the_verdict(verdict: Verdict, tmp_path: Path) -> None:
    made = certificate(verdict)
    report.write(made, made.findings, tmp_path)
    source = (tmp_path / "index.html").read_text()
    assert re.search(rf"<h1>{verdict.value}", source)
    assert f"Exit code {made.exit_code}." in source


def test_junit_has_unique_cases_and_short_texts(tmp_path: Path) -> None:
    made = certificate()
    report.write(made, made.findings, tmp_path)
    root = ET.parse(tmp_path / "junit.xml").getroot()
    cases = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    assert len(set(cases)) == len(cases) == len(HOSTILE)
    assert all(len((failure.text or "").splitlines()) <= LINES for failure in root.iter("failure"))
    assert {prop.get("value") for prop in root.iterfind("testsuite/properties/property[@name='verdict']")} == {"REJECTED"}


def test_certificate_is_readable_json_and_nothing_else_is_left(tmp_path: Path) -> None:
    made = certificate()
    report.write(made, made.findings, tmp_path)
    assert json.loads((tmp_path / "certificate.json").read_text())["predicate"]["failures"][6]["subject"] == HOSTILE[6]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(report.NAMES)


def test_no_signature_outlives_its_certificate(tmp_path: Path) -> None:
    (tmp_path / report.SIGNATURE).write_text("of another certificate")
    (tmp_path / "elsewhere.sig").write_text("somebody else's")
    report.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere.sig"]


def test_printable_text_stays_apart() -> None:
    names = [*HOSTILE, "a\\x1b[2Jb", "line\\nbreak", "\\"]
    assert len({identifier(name) for name in names}) == len(names)
    assert all(identifier(name).isprintable() for name in names)
    assert printable("plain.weight") == "plain.weight"
    assert len(paragraph("x\n" * 500)) == LINES


def test_terminal_summary_is_printable() -> None:
    lines: list[str] = []

    class Terminal:
        def write_sep(self, sep: str, title: str | None = None, fullwidth: int | None = None, **markup: bool) -> None: ...
        def write_line(self, line: str | bytes, **_markup: bool) -> None:
            lines.append(str(line))

    summary.show(certificate(), None, Terminal())
    assert all(line.isprintable() for line in lines)
    assert lines[1].strip() == "REJECTED"
    assert any("exit code" in line and line.endswith(" 1") for line in lines)


def test_launcher_environment_trusts_no_relative_and_no_judged_path(tmp_path: Path) -> None:
    inherited = {"PYTHONPATH": f".:{tmp_path}:{tmp_path}/merged/lib:/opt/lib:", "PYTEST_ADDOPTS": "-p evil", "PYTEST_PLUGINS": "evil"}
    made = launch.environment(inherited | {"HOME": "/root"}, [tmp_path / "merged"])
    assert made["PYTHONPATH"].split(":")[:2] == [str(tmp_path), "/opt/lib"]
    assert {name for name in made if name.startswith("PYTEST")} == {"PYTEST_DISABLE_PLUGIN_AUTOLOAD"}
    assert made["HF_HUB_OFFLINE"] == "1"


def test_launcher_turns_a_death_into_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Python ends with 1 where an exception escapes, and with −9 where it is killed: neither is a rejection."""
    monkeypatch.setattr(pytest, "main", lambda _words: 1 / 0)
    assert launch.inside([]) == 3
    assert "ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setattr(launch, "_wait", lambda process: process.kill() or -9)
    assert launch.run([], []) == 3
