"""One judgement as pytest runs it: which items there are, what they found, and the exit code that follows from it.

The tally trusts evidence, never pytest's outcomes: what was deselected, skipped, stopped by -x, not collected or interrupted has left none,
so the run is INCOMPLETE whatever the reason. Under xdist the workers examine and the controller judges.
"""

import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from certify import report as reports
from certify.collect import EVIDENCE, Subject, Suite
from certify.errors import UsageError
from certify.finding import Finding, Outcome
from certify.plugin import refuse
from certify.question import ACCOUNTS, FILES, LAYERS, LOGITS, SELF_CHECK
from certify.report import summary
from certify.report.room import keep_apart, occupy
from certify.report.running import Running
from certify.report.text import identifier, paragraph
from certify.request import Request

if TYPE_CHECKING:  # imports torch, which takes seconds
    from certify.examination import Examination
    from certify.verdict import Certificate

SUITES = ("test_files.py", "test_tensors.py", "test_layers.py", "test_logits.py", "test_selfcheck.py")  # in the order of a reader
CLOSING = "conclusion"  # stands where an item's file stands
USAGE, ERROR, INCOMPLETE = 4, 3, 10  # process exit codes


class Gate:
    """The hooks of one session; registered only where a question was asked."""

    def __init__(self, config: pytest.Config, request: Request, report: Path | None) -> None:
        self.config, self.request, self.report = config, request, report
        self.worker = hasattr(config, "workerinput")
        config.option.maxworkerrestart = "0"  # of xdist: where a worker died, the verdict is ERROR; others would die of the same item
        self.examination: Examination | None = None
        self.certificate: Certificate | None = None
        self.findings: dict[str, dict[str, list[Finding]]] = {}  # by group, then by subject
        self.crashed: str | None = None
        self.died: str | None = None  # a worker of xdist, whatever it was doing
        self.left: Counter[str] = Counter()  # subjects not yet seen, by group
        self.total: dict[str, int] = {}
        self.failed: Counter[str] = Counter()
        self.lock: int | None = None  # of the report directory; the workers of one run are one run
        self.running: Running | None = None  # junit.xml until the report is written

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Open the checkpoints' headers; forget what an earlier run may have written to the report directory."""
        try:
            if self.report and not self.worker:
                if not self.request.adapters:
                    from certify.inputs.claim import named

                    keep_apart(self.report, named(self.request.merged))
                self.lock = occupy(self.report)
                reports.clear(self.report)
            from certify.examination import Examination

            self.examination = examination = Examination(self.request, self.report)
            if self.report:
                examination.journal  # noqa: B018 a report directory that cannot be used is a wrong question
        except (UsageError, OSError) as error:
            refuse(self.config, str(error))
        self.left.update(identifier(question.group) for question in self.examination.questions())
        self.total = dict(self.left)
        if self.report and not self.worker:
            self.running = Running(self.report / reports.JUNIT, self.left.total())

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makemodule(self, module_path: Path, parent: pytest.Collector) -> Suite | None:
        """Our own tree instead of test functions."""
        if module_path.name not in SUITES or module_path.resolve().parent != Path(__file__).resolve().parent:
            return None
        assert self.examination is not None
        return Suite.from_parent(parent, path=module_path, request=self.request, examination=self.examination)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Files and tensors first; leave out what --only leaves out: the tally will notice."""
        items.sort(key=lambda item: SUITES.index(item.path.name) if isinstance(item, Subject) else -1)
        outside = [item for item in items if isinstance(item, Subject) and not item.question.within(self.request.only)]
        if outside:
            self.config.hook.pytest_deselected(items=outside)
            left_out = set(outside)
            items[:] = [item for item in items if item not in left_out]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Two reports per item instead of three, and no fixtures: half the time of a run over 92,000 tensors."""
        if not isinstance(item, Subject):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for when, step in (("call", item.runtest), ("teardown", lambda: None)):
            call = pytest.CallInfo.from_call(step, when, reraise=(KeyboardInterrupt, pytest.exit.Exception))  # type: ignore[arg-type]
            item.ihook.pytest_runtest_logreport(report=item.ihook.pytest_runtest_makereport(item=item, call=call))
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        item.user_properties.clear()  # the report has them, and pytest keeps the item to the end
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Iterator[None]:
        """Evidence first. The terminal keeps every report to the end, and only counts those that passed: one can stand for all 92,000."""
        self._evidence(report)
        yield
        reporter, option = self.config.pluginmanager.get_plugin("terminalreporter"), self.config.option
        if reporter is None or option.durations is not None or {*option.reportchars} & {*"pPA"}:
            return
        reporter.stats.pop("", None)  # of steps that nobody counts
        passed = reporter.stats.get("passed")
        if passed and passed[-1] is report:
            passed[-1] = passed[0]

    def _evidence(self, report: pytest.TestReport) -> None:
        """Take the evidence out of a report, in the process that will judge and has not judged yet."""
        if self.worker or self.certificate is not None:
            return
        evidence = [str(value) for name, value in report.user_properties if name == EVIDENCE]
        report.user_properties = [(name, value) for name, value in report.user_properties if name != EVIDENCE]
        if evidence and report.when == "call":
            self._take(json.loads(evidence[0]))
        elif report.failed and not evidence and _ours(report.nodeid):
            self.crashed = self.crashed or f"{report.nodeid.rpartition('::')[2]}: {_last_line(report)}"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A collector of ours that fails is a failure of the gate: damaged input is found by C1, not by pytest."""
        if report.failed and _ours(report.nodeid):
            self.crashed = self.crashed or f"{report.nodeid}: {_last_line(report)}"

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport, config: pytest.Config) -> tuple[str, str, str] | None:
        """No letter per tensor: a line per shard says more."""
        ours = _ours(report.nodeid) or report.nodeid.startswith(f"{CLOSING}::")
        if report.when == "call" and ours and config.get_verbosity(pytest.Config.VERBOSITY_TEST_CASES) <= 0:
            return report.outcome, "", ""
        return None

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        """A whole shard to one worker, so that it is read once."""
        from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

        return LoadScopeScheduling(config, log)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, error: object) -> None:
        """A worker of xdist that did not end as it should."""
        if error:
            self.died = self.died or f"a worker died: {str(error).strip().rpartition(chr(10))[2]}"

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Judge, write, and decide what the process ends with. Nothing that goes wrong here may look like a verdict."""
        if self.worker or session.exitstatus == USAGE:
            return
        before = int(session.exitstatus)
        try:
            session.exitstatus = self._conclude(before)
        except Exception:  # shown in full, and 3
            interrupted = before == pytest.ExitCode.INTERRUPTED and self.crashed is None  # perhaps halfway through an import
            session.exitstatus = INCOMPLETE if interrupted else ERROR
            if not interrupted:
                traceback.print_exc(file=sys.stderr)

    def pytest_unconfigure(self) -> None:
        """Let the next run into the report directory."""
        if self.lock is not None:
            os.close(self.lock)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The certificate for the person at the terminal."""
        if self.certificate is not None:
            summary.show(self.certificate, self.report, terminalreporter)

    def _conclude(self, status: int) -> int:
        if self.examination is None:  # interrupted, or broken, before there was anything to judge
            return ERROR if status == ERROR else INCOMPLETE
        crashed = self.crashed or self.died or ("pytest itself failed" if status == ERROR else None)
        findings = [finding for group in self.findings.values() for found in group.values() for finding in found]
        run = sum(bool(found) for group in self.findings.values() for found in group.values())
        self.certificate = self.examination.certificate(findings, run=run, crashed=crashed)
        for finding in self.certificate.closing:
            self._tell(finding)
        if self.running is not None:
            self.running.close()
        if self.report is not None:
            reports.write(self.certificate, self.certificate.findings, self.report)
        if self.certificate.exit_code == 0 and status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            return status if status == pytest.ExitCode.TESTS_FAILED else INCOMPLETE  # tests that are not ours were run too
        return self.certificate.exit_code

    def _tell(self, finding: Finding) -> None:
        """A case of its own for what no item could find, since only the whole run tells it; under xdist no worker could."""
        name = identifier(f"{finding.code} {finding.subject}")
        nodeid, place = f"{CLOSING}::{name}", (CLOSING, None, name)
        text = "\n".join(paragraph(f"{finding.code}  {finding.sentence}"))
        failed, unknown = finding.outcome is Outcome.FAILED, finding.outcome is Outcome.NOT_INTERPRETED
        call = ("failed", text) if failed else ("skipped", (CLOSING, 0, text)) if unknown else ("passed", None)
        for when, (outcome, told) in (("call", call), ("teardown", ("passed", None))):
            report = pytest.TestReport(nodeid, place, {}, outcome, told, when)  # type: ignore[arg-type]
            self.config.hook.pytest_runtest_logreport(report=report)

    def _take(self, evidence: dict[str, Any]) -> None:
        group, subject, crashed = evidence["group"], evidence["subject"], evidence["crashed"]
        if crashed is not None:
            self.crashed = self.crashed or f"{subject}: {crashed}"
            return
        assert self.examination is not None
        self.examination.digests.learn(evidence["digests"])
        found = [Finding.of(finding) for finding in evidence["findings"]]
        self.findings.setdefault(group, {}).setdefault(subject, []).extend(found)
        if self.running is not None:
            self.running.add(found)
        self._progress(identifier(group), found)
        self._keep(group)

    def _keep(self, group: str) -> None:
        """A shard's evidence, once all of its tensors are judged, for a run that is killed later or follows a repair."""
        assert self.examination is not None
        shard, journal = self.examination.shards.get(group), self.examination.journal
        if journal and shard and len(self.findings[group]) == len(shard.tensors):
            journal.record(group, shard.tensors, shard.files, self.findings[group])

    def _progress(self, group: str, found: Sequence[Finding]) -> None:
        self.left[group] -= 1
        self.failed[group] += any(finding.outcome is Outcome.FAILED for finding in found)
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and self.left[group] == 0 and group not in (ACCOUNTS, LOGITS, SELF_CHECK):
            reporter.ensure_newline()
            sign, colour = ("✗", "red") if self.failed[group] else ("✓", "green")
            told = f", {self.failed[group]:,} failed" if self.failed[group] else ""
            what = f"{self.total[group]:,} {group}" if group in (FILES, LAYERS) else f"{group}   {self.total[group]:,} tensors"
            reporter.write_line(f"  {sign} {what}{told}", **{colour: True})


def _ours(nodeid: str) -> bool:
    return nodeid.partition("::")[0].rpartition("/")[2] in SUITES


def _last_line(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr).strip().rpartition("\n")[2]
