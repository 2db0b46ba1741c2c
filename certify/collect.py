"""The tree that pytest walks: module → shard → tensor. One item carries all checks of its subject.

Four items per tensor would cost four times the time and memory (92,000 tensors: 110 s and 1.9 GB instead of 25 s and 0.5 GB).
"""

import importlib
import json
import traceback
import warnings
from collections.abc import Iterator, Sequence
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from certify.command import repeat
from certify.finding import Finding, Outcome
from certify.question import Question
from certify.report.text import LINES, identifier, paragraph, printable
from certify.request import Request

if TYPE_CHECKING:  # imports torch, which takes seconds
    from certify.examination import Examination

EVIDENCE = "certify"  # the user property in which findings travel from the process that examined to the one that tells
SPOKEN = 25  # failures told in full; the others in one line, since nobody reads a thousand


class UnsoundError(Exception):
    """A subject failed a check; the findings say how."""


class Suite(pytest.File):
    """One of the gate's test modules. Imported by its name in the package, so that no import mode of pytest's has a say."""

    def __init__(self, *, request: Request, examination: "Examination", **keywords: Any) -> None:
        super().__init__(**keywords)
        self.request, self.examination = request, examination

    def collect(self) -> Iterator[pytest.Collector]:
        """The groups of this module's questions."""
        questions = importlib.import_module(f"certify.{self.path.stem}").questions(self.examination)
        for group, members in groupby(questions, key=lambda question: question.group):
            yield Group.from_parent(self, name=identifier(group), questions=list(members))


class Group(pytest.Collector):
    """The tensors of one shard, or the files; under xdist one process does a whole group, so that a shard is read once."""

    def __init__(self, *, questions: Sequence[Question], **keywords: Any) -> None:
        super().__init__(**keywords)
        self.questions = questions

    def collect(self) -> Iterator[pytest.Item]:
        """One item per question."""
        for question in self.questions:
            yield Subject.from_parent(self, name=identifier(question.subject), question=question)


class Subject(pytest.Item):
    """One tensor, one file, the adapter's accounts, or the gate itself.

    There are 92,000: what pytest makes for each node, and no item of ours has anything of its own in, is its group's.
    """

    spoken = 0

    def __init__(self, *, question: Question, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.question = question
        assert self.parent is not None
        self.keywords, self.stash, self._store = self.parent.keywords, self.parent.stash, self.parent.stash
        self.own_markers, self.extra_keyword_matches = self.parent.own_markers, self.parent.extra_keyword_matches

    def runtest(self) -> None:
        """Ask; attach what was found; fail if a check failed, skip if something could not be interpreted."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default")  # a project's "error" filter judges the project, not a checkpoint
                findings = self.question.ask()
        except (KeyboardInterrupt, pytest.exit.Exception):
            raise
        except BaseException as error:
            self._attach([], crashed=f"{type(error).__name__}: {error}")
            raise
        self._attach(findings)
        accepted = self._suite.examination.accepted
        failed = [f for f in findings if f.outcome is Outcome.FAILED and not accepted.covering(f, date.today())]
        for finding in failed:
            self.user_properties += [(f"{finding.code}.{name}", printable(str(value))) for name, value in finding.figures.items()]
        if failed:
            raise UnsoundError(failed)
        for finding in findings:
            if finding.outcome is Outcome.NOT_INTERPRETED:
                pytest.skip(" ".join(paragraph(f"{finding.code}: {finding.sentence}")))

    def _attach(self, findings: list[Finding], crashed: str | None = None) -> None:
        asked = {"group": self.question.group, "subject": self.question.subject}
        evidence = asked | {"crashed": crashed, "digests": self._suite.examination.digests.news()}
        self.user_properties.append((EVIDENCE, json.dumps(evidence | {"findings": [finding.data for finding in findings]})))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:  # noqa: ARG002
        """The findings' own sentences and the command that asks again; of a crash, where it happened."""
        again = f"Again: {repeat(self._suite.request, self.question.subject)}"
        if not isinstance(excinfo.value, UnsoundError):
            trace = "".join(traceback.format_exception(excinfo.value)[-8:])
            return "\n".join([f"The gate itself failed on {self.name}. This says nothing about the checkpoint.", *paragraph(trace), again])
        lines = [line for finding in excinfo.value.args[0] for line in paragraph(f"{finding.code}  {finding.sentence}")]
        Subject.spoken += 1
        if Subject.spoken > SPOKEN:
            return lines[0]
        return "\n".join([*paragraph("\n".join(lines), LINES - 1), again])

    @property
    def _suite(self) -> Suite:
        suite = self.getparent(Suite)
        assert suite is not None
        return suite

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where a reporter says that this item lives."""
        return self.path, None, self.name
