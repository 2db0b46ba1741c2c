"""pytest as the gate's reporter: the exit code follows from evidence alone, and nothing that pytest leaves out can look like green."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from certify import launch
from certify.examination import Examination
from certify.finding import Finding
from certify.journal import EVIDENCE
from certify.report.room import LOCK
from certify.tensors import Tensors
from tests.test_certify.front_checkpoint import SUBJECTS, TOUCHED, Question, make


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Question:
    return make(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Question:
    return make(tmp_path_factory.mktemp("red"), red=True)


def run(question: Question, *more: str) -> int:
    """The gate in this process, as the launcher starts it in another; importing torch once is enough."""
    return int(pytest.main([*launch.arguments(question.words), *more]))


def predicate(report: Path) -> dict[str, object]:
    data = json.loads((report / "certificate.json").read_text())
    assert isinstance(data["predicate"], dict)
    return data["predicate"]


def test_sound_is_certified(sound: Question, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(sound, f"--report={tmp_path}") == 0
    assert predicate(tmp_path)["coverage"] == {"expected": SUBJECTS, "run": SUBJECTS}
    told = capsys.readouterr().out
    assert "CERTIFIED(layers)" in told
    assert "C10" in told, "what is not judged must be named"


def test_every_duration_is_told(sound: Question, capsys: pytest.CaptureFixture[str]) -> None:
    """0 asks for all of them: each subject by its own name."""
    assert run(sound, "--level=weights", "--durations=0", "--durations-min=0") == 0
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines() if "s call " in line]
    assert len({line[2] for line in lines}) == len(lines) > 2


@pytest.mark.parametrize(
    "less", ["-k=norm", "--only=*norm*", "--collect-only", f"--deselect=test_tensors.py::model-00001-of-00002.safetensors::{TOUCHED}"]
)
def test_what_is_left_out_is_incomplete(less: str, sound: Question, red: Question) -> None:
    """Also where the tensor that is left out is the red one."""
    assert run(sound, less, "--level=weights") == 10
    assert run(red, less, "--level=weights") == 10


def test_half_of_the_gate_is_incomplete(sound: Question) -> None:
    words = [word.replace(str(launch.PACKAGE), str(launch.PACKAGE / "test_files.py")) for word in launch.arguments(sound.words)[-4:]]
    assert int(pytest.main([*launch.arguments([])[:-1], *words])) == 10


def test_without_an_adapter_is_incomplete(sound: Question) -> None:
    assert int(pytest.main(launch.arguments([sound.words[0], sound.words[2]]))) == 10


def test_failure_says_how_to_ask_again(red: Question, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(red, "-x") == 1
    told = capsys.readouterr().out
    assert f"--only={TOUCHED}" in told
    assert "never merged" in told


def test_interrupt_is_incomplete(sound: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_self: Tensors, _name: str) -> list[Finding]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tensors, "examine", interrupt)
    assert run(sound) == 10


@pytest.mark.parametrize("error", [ValueError, MemoryError, SystemExit])
def test_crash_is_an_error_that_names_the_tensor(
    error: type[BaseException], red: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never 1, though another tensor is red; never 0."""
    examine = Tensors.examine

    def crash(self: Tensors, name: str) -> list[Finding]:
        if name == "lm_head.weight":
            raise error("out of luck")
        return examine(self, name)

    monkeypatch.setattr(Tensors, "examine", crash)
    assert run(red, f"--report={tmp_path}") == 3
    reason = predicate(tmp_path)["reason"]
    assert isinstance(reason, str)
    assert "lm_head.weight" in reason
    assert "out of luck" in reason
    assert ET.parse(tmp_path / "junit.xml").find(".//error") is not None


def test_crash_while_opening_leaves_no_old_verdict(sound: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(sound, f"--report={tmp_path}") == 0

    def crash(_self: Examination, *_: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Examination, "__init__", crash)
    assert run(sound, f"--report={tmp_path}") == 3
    assert {path.name for path in tmp_path.iterdir()} == {EVIDENCE, LOCK}  # what is found again only in the same bytes


def test_crash_while_judging_is_an_error(red: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Examination, "certificate", crash)
    assert run(red) == 3


@pytest.mark.parametrize("name", ["sound", "red"])
def test_both_junit_files_agree(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    run(request.getfixturevalue(name), f"--report={tmp_path}", f"--junitxml={tmp_path / 'pytest.xml'}")
    ours, theirs = (ET.parse(tmp_path / file).getroot() for file in ("junit.xml", "pytest.xml"))
    for count in ("tests", "failures", "errors", "skipped"):
        assert [suite.get(count) for suite in ours.iter("testsuite")] == [suite.get(count) for suite in theirs.iter("testsuite")], count
    failed = [[case.get("name") for case in root.iter("testcase") if case.find("failure") is not None] for root in (ours, theirs)]
    assert failed[0] == failed[1] == ([TOUCHED, "model.layers.0"] if name == "red" else [])
    assert not [prop for prop in theirs.iter("property") if prop.get("name") == "certify"], "evidence is for the tally, not for the file"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("--base=/nowhere", "/nowhere"),
        ("--weight=1 --weight=2", "--weight"),
        ("--level=all", "--level"),
        ("--min-retention=1.5", "--min-retention"),
        ("--accept=FILE", "--accept"),
        ("--base-digest=D", "--base-digest"),
        ("--device=cuda", "--device"),
        ("--report={merged}/report", "inside"),
        ("--report={base}", "inside"),
        ("--report={base}/..", "contains"),
        ("-c {merged}/pytest.ini", "lora-certify run --base="),
    ],
)
def test_no_question_is_a_usage_error(wrong: str, named: str, sound: Question, capsys: pytest.CaptureFixture[str]) -> None:
    (sound.merged / "pytest.ini").write_text("[pytest]\n")
    words = wrong.format(base=sound.base, merged=sound.merged, adapter=sound.adapter).split()
    assert run(sound, *words) == 4
    shown = capsys.readouterr()
    assert named in shown.out + shown.err


@pytest.mark.parametrize("words", [[], ["--merged=/nowhere"], ["--report=/nowhere"]])
def test_a_bare_gate_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert int(pytest.main([*launch.arguments(words)])) == 4
    assert "pytest certify/ --base=" in capsys.readouterr().err


def test_a_checkpoints_conftest_ends_the_run(sound: Question, capsys: pytest.CaptureFixture[str]) -> None:
    """Named on the command line it is executed, which nobody can cure; but no verdict comes of it."""
    (sound.merged / "conftest.py").write_text("")
    words = [word for word in launch.arguments(sound.words) if word != "--noconftest"]
    assert int(pytest.main([*words, str(sound.merged)])) == 4
    assert "has executed" in capsys.readouterr().err


def test_other_tests_are_left_alone(tmp_path: Path) -> None:
    """The entry point is loaded into every pytest run of an environment."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_other.py").write_text("def test_a(): pass\ndef test_b(): assert False\n")
    assert int(pytest.main([str(tmp_path), "-k", "test_a", "-p", "no:cacheprovider"])) == 0
    assert int(pytest.main([str(tmp_path), "-p", "no:cacheprovider"])) == 1


def test_a_question_beside_other_tests_is_never_green(sound: Question) -> None:
    """`pytest tests --base=…` has collected nothing of the gate."""
    other = str(Path(__file__).with_name("test_front_report.py"))
    assert int(pytest.main([*launch.arguments(sound.words)[:-4], *sound.words, other, "-k", "printable"])) == 10
