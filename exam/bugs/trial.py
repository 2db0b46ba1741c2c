"""One trial: the engine runs with a bug, and the gate judges what it wrote."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

import certify
import merge
from certify.finding import Outcome
from certify.verdict import Certificate, Verdict
from exam.bugs.inputs import Inputs, Shelf
from exam.bugs.registry import Bug
from merge import planner

SLAB = 320  # bytes: so that tiny tensors are cut as big ones are, into several jobs of several slabs, the last one short
STOPPED, VACUOUS = "engine refused", "vacuous"
OF_THE_RUN = ("merge-manifest.json", "merge-run.jsonl")  # bind the output to the plan; no loader reads them


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a bug.

    verdict  of the gate; "engine refused"; "vacuous": the bytes of the merge without the bug, or one that the gate does not certify
    codes    of the checks that failed, or of what the gate does not interpret
    """

    bug: Bug
    verdict: str
    codes: tuple[str, ...] = ()
    reason: str = ""

    @property
    def good(self) -> bool:
        """The gate was given something, and refused it; or the engine stopped where that is expected."""
        return self.verdict == STOPPED if self.bug.stopped else self.verdict in (Verdict.REJECTED, Verdict.INCOMPLETE)


class Trials:
    """Runs bugs; sound merges and inputs are made once. None: the engine as it is refuses these inputs, and is right."""

    def __init__(self, root: Path) -> None:
        self._shelf, self._out = Shelf(root), root / "out"
        self._sound: dict[str, dict[str, bytes] | None] = {}

    def run(self, bug: Bug) -> Trial:
        try:
            return self._try(bug)
        finally:
            shutil.rmtree(self._out, ignore_errors=True)

    def _try(self, bug: Bug) -> Trial:
        inputs = self._shelf[bug.case]
        if bug.case not in self._sound:
            told = self._merge(inputs)
            self._sound[bug.case] = None if told else _contents(self._out)
            if not told and self._judge(inputs).verdict is not Verdict.CERTIFIED:
                return Trial(bug, VACUOUS, reason="the gate refuses this case without the bug as well")
            shutil.rmtree(self._out, ignore_errors=True)
        with pytest.MonkeyPatch.context() as patch:
            bug.plant(patch)
            told = self._merge(inputs)
        if told:
            return Trial(bug, STOPPED, reason=told)
        if _contents(self._out) == self._sound[bug.case]:
            return Trial(bug, VACUOUS)
        found = self._judge(inputs)
        telling = Outcome.FAILED if found.verdict is Verdict.REJECTED else Outcome.NOT_INTERPRETED
        codes = tuple(sorted({finding.code for finding in found.findings if finding.outcome is telling}))
        return Trial(bug, found.verdict, codes, found.reason)

    def _judge(self, inputs: Inputs) -> Certificate:
        return certify.judge(inputs.base, inputs.adapter, self._out, output_dtype=inputs.output, level="weights")

    def _merge(self, inputs: Inputs) -> str:
        """Why nothing was written; empty if the output is there."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(planner, "MIB", SLAB)
            try:
                merge.merge(inputs.base, inputs.adapter, self._out, output_dtype=inputs.output, workers=1)
            except Exception as error:  # an engine with a bug may stumble in any way
                return f"{type(error).__name__}: {error}".splitlines()[0]
        return ""


def _contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file() and path.name not in OF_THE_RUN}
