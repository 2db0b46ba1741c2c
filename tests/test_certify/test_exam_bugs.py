"""The gate shares nothing with the engine: whatever comes out of an engine with a bug, it refuses. The table: `python -m exam.bugs`."""

from pathlib import Path

import pytest

import merge
from exam.bugs import BUGS, Bug
from exam.bugs.__main__ import LEAST
from exam.bugs.trial import Trials

WITHOUT_LOGIC = {"adapters/table": "prints which families and features the tests merge: no merge reads it"}


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Trials:
    return Trials(tmp_path_factory.mktemp("bugs"))


@pytest.mark.parametrize("bug", BUGS.values(), ids=list(BUGS))
def test_what_a_bug_writes_is_refused(bug: Bug, trials: Trials) -> None:
    trial = trials.run(bug)
    assert trial.good, f"{trial.verdict}: {trial.reason}"


def test_every_file_that_gives_an_adapter_its_meaning_has_bugs() -> None:
    here = Path(merge.__file__).parent
    files = {f"adapters/{path.stem}" for path in (here / "adapters").glob("*.py")}
    assert files - WITHOUT_LOGIC.keys() <= {bug.module for bug in BUGS.values()}
    assert WITHOUT_LOGIC.keys() <= files
    assert {bug.module for bug in BUGS.values()} <= {path.relative_to(here).with_suffix("").as_posix() for path in here.rglob("*.py")}


def test_enough_bugs_write_something() -> None:
    assert sum(not bug.stopped for bug in BUGS.values()) >= LEAST
