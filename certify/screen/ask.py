"""`lora-certify screen`: the whole question, from directories to what is printed and the exit code."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from certify.checks.c2_completeness import Demand, completeness, expected_dtype, main_dtype
from certify.errors import UsageError
from certify.files import Files
from certify.finding import Finding, Outcome
from certify.inputs.adapter import open_adapter
from certify.inputs.checkpoint import Checkpoint, open_checkpoint
from certify.request import Request
from certify.screen import adapter as lost
from certify.screen import report
from certify.screen.adapter import Trace
from certify.screen.screening import Screening, State, conclude, looked
from certify.tensors import places

REJECTED, INCOMPLETE = 1, 10


@dataclass(frozen=True)
class Answer:
    """faults: what is proven wrong without an adapter; the only thing that makes the exit code 1."""

    screening: Screening
    faults: tuple[Finding, ...]
    trace: Trace | None

    @property
    def exit_code(self) -> int:
        return REJECTED if self.faults else INCOMPLETE

    @property
    def state(self) -> State:
        """What the adapter says against the merge counts as well."""
        return State.SUSPECT if self.trace is not None and self.trace.findings else self.screening.state

    def data(self) -> dict[str, Any]:
        """JSON data."""
        told: dict[str, Any] = {
            "screen": self.state.value,
            "exit_code": self.exit_code,
            "findings": list(self.screening.findings),
            "faults": [asdict(fault) for fault in self.faults],
            "figures": self.screening.figures,
        }
        if self.trace is not None:
            scalings, modules = lost.told(self.trace), self.trace.figures
            told["adapter"] = {"scalings": scalings, "findings": list(self.trace.findings), "modules": modules, "reason": self.trace.reason}
        return told

    def text(self) -> list[str]:
        """Lines for a terminal."""
        return report.lines(self.state, self.screening, self.faults, self.trace)


def ask(base: Path, merged: Path, adapter: Path | None, output_dtype: str) -> Answer:
    """Screens two directories. Raises UsageError for a question that makes no sense; damaged files become faults."""
    if adapter is not None and not adapter.is_dir():
        raise UsageError(f"--adapter {adapter}: no such directory")
    Request(base, merged, output_dtype=output_dtype).refuse_unusable()
    ours, theirs = open_checkpoint(base), open_checkpoint(merged)
    touches = dict(looked(ours, theirs))
    screening = conclude(ours, theirs, touches)
    proven = [finding for finding in _structure(ours, theirs, output_dtype) if finding.outcome is Outcome.FAILED]
    trace = lost.trace(ours, theirs, open_adapter(adapter), touches) if adapter is not None else None
    return Answer(screening, (*proven, *screening.faults), trace)


def _structure(base: Checkpoint, merged: Checkpoint, output_dtype: str) -> Iterator[Finding]:
    """C1 of every file and C2 of every tensor: they need no adapter."""
    files, main = Files(base, merged, (), output_dtype), main_dtype(base)
    yield from map(files.examine, files.subjects)
    for _, name in places(base, merged):
        held = base.tensors.get(name)
        demand = Demand(held.shape, (expected_dtype(held.dtype, main, output_dtype),)) if held else None
        yield completeness(name, base, merged, demand)
