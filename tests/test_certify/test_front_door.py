"""The front door: whatever a checkpoint carries, nothing of it is executed, and red stays red, for every documented command form."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import certify
from tests.test_certify.front_checkpoint import TOUCHED, Question, make

CHECKOUT = Path(certify.__file__).parents[1]
BIN = Path(sys.executable).parent
EVIL = """\
import pathlib
pathlib.Path(__file__).with_name("EXECUTED-" + pathlib.Path(__file__).name).write_text("")
def pytest_runtest_makereport(item, call):
    call.excinfo = None
def pytest_sessionfinish(session):
    session.exitstatus = 0
"""
TABLE = "pythonpath = .\naddopts = -p evil\n"
TRAPS = {
    "pytest.ini": f"[pytest]\n{TABLE}",
    ".pytest.ini": f"[pytest]\n{TABLE}",
    "tox.ini": f"[pytest]\n{TABLE}",
    "setup.cfg": f"[tool:pytest]\n{TABLE}",
    "pytest.toml": '[pytest]\npythonpath = ["."]\naddopts = ["-p", "evil"]\n',
    "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\naddopts = ["-p", "evil"]\n',
    **dict.fromkeys(("conftest.py", "sitecustomize.py", "usercustomize.py", "evil.py", "typer.py", "torch.py", "test_evil.py"), EVIL),
}

Form = Callable[[Question], list[str]]
FORMS: dict[str, Form] = {
    "lora-certify run": lambda q: [str(BIN / "lora-certify"), "run", *q.words],
    "python -m certify run": lambda q: [sys.executable, "-m", "certify", "run", *q.spaced],
    "pytest certify/ --base=B": lambda q: [str(BIN / "pytest"), "certify/", *q.words],
    "pytest certify/ --base B": lambda q: [str(BIN / "pytest"), "certify/", *q.spaced],
}


def trapped(room: Path) -> Question:
    """A red question whose base and merged directories try to take over the run."""
    question = make(room, red=True)
    for directory in (question.base, question.merged):
        for name, text in TRAPS.items():
            (directory / name).write_text(text)
    return question


@pytest.fixture(scope="module", params=["outside", "inside"])
def question(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Question]:
    """Checkpoints outside the checkout, and inside (below the ignored reports/)."""
    if request.param == "outside":
        yield trapped(tmp_path_factory.mktemp("outside"))
    else:
        (CHECKOUT / "reports").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="front-door-", dir=CHECKOUT / "reports") as room:
            yield trapped(Path(room))


def ask(command: list[str], cwd: Path, **hostile: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a person would, from `cwd`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONPATH"))}
    return subprocess.run(command, cwd=cwd, env=kept | hostile, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_executed_and_red_stays_red(form: str, question: Question) -> None:
    """The launcher is started from inside the checkpoint, under variables that would load the checkpoint's plug-in."""
    launched = "run" in form.split()
    hostile = {"PYTEST_ADDOPTS": f"-p evil -c {question.merged / 'pytest.ini'}", "PYTEST_PLUGINS": "evil"} if launched else {}
    end = ask(FORMS[form](question), question.merged if launched else CHECKOUT, **hostile)
    executed = [*question.base.glob("**/EXECUTED*"), *question.merged.glob("**/EXECUTED*")]
    assert not executed, end.stdout + end.stderr
    assert end.returncode == 1, end.stdout + end.stderr
    assert "REJECTED" in end.stdout
    assert TOUCHED in end.stdout


def test_the_trap_works_and_the_equals_sign_disarms_it(tmp_path: Path) -> None:
    """Options first, without the sign: pytest takes DIR for a test path and runs what it holds. No documentation shows that form."""
    question = trapped(tmp_path)
    pytest_, suite = str(BIN / "pytest"), str(CHECKOUT / "certify")
    end = ask([pytest_, *question.words, suite], tmp_path)
    assert not [*tmp_path.glob("**/EXECUTED*")], end.stdout + end.stderr
    assert end.returncode == 1, end.stdout + end.stderr
    end = ask([pytest_, *question.spaced, suite], tmp_path)
    assert [*tmp_path.glob("**/EXECUTED*")], "a trap that never closes proves nothing"
    assert "CERTIFIED" not in end.stdout
