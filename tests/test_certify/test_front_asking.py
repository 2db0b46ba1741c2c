"""Whoever asks: their name in certificate and page, one sentence where the question makes no sense, how far a long reading is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from certify import launch, report
from certify.request import REQUESTER
from certify.signoff import progress
from tests.test_certify.front_checkpoint import Question, make
from tests.test_certify.release import call


@pytest.fixture(scope="module")
def question(tmp_path_factory: pytest.TempPathFactory) -> Question:
    return make(tmp_path_factory.mktemp("asking"))


@pytest.mark.parametrize("words", [["--requester=Ada <b>Lovelace</b>"], []], ids=["said", "by the environment"])
def test_who_asked_stands_in_the_certificate_and_on_page_one(
    words: list[str], question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REQUESTER, "the pipeline")
    assert pytest.main([*launch.arguments([*question.words, *words, f"--report={tmp_path}", "--level=weights"])]) == 0
    told = json.loads((tmp_path / report.CERTIFICATE).read_text())["predicate"]
    assert told["requester"] == ("Ada <b>Lovelace</b>" if words else "the pipeline")
    assert REQUESTER not in told["command"]
    assert "--requester" not in told["command"], "another person asks in another name"
    page = (tmp_path / report.PAGE).read_text()
    assert ("Asked by Ada &lt;b&gt;Lovelace&lt;/b&gt;." if words else "Asked by the pipeline.") in page


def test_a_question_that_makes_no_sense_gets_one_sentence(question: Question) -> None:
    words = [f"--base={question.base / 'nowhere'}", *question.words[1:]]
    end = subprocess.run([sys.executable, "-P", "-m", "certify", "run", *words], capture_output=True, text=True, check=False)
    assert end.returncode == 4
    sentence = f"ERROR: certify: --base {question.base / 'nowhere'}: no such directory"
    assert [line for line in (end.stdout + end.stderr).splitlines() if line] == [sentence]


@pytest.mark.parametrize("command", ["run", "screen", "sign", "verify", "compare"])
def test_a_flag_takes_no_value(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert call([command, "--help"], monkeypatch) == 0
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if "<bool>" in line and "--help" not in line] == []
    if command == "run":
        assert "faithful: either neighbour" in " ".join(told.replace("│", " ").split())


def test_a_long_reading_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress.progress(8 << 30) as read:
        read(2 << 30)
    with progress.progress(1 << 20) as read:
        read(1 << 20)
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("  2.0 GiB of 8.0 GiB read, ")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.progress(8 << 30) as read:
        read(8 << 30)
