"""The run at a glance, as compact data for a page: 92,000 tensors are folded to layers and kinds of modules, faults to groups.

Nothing here judges; everything follows from the findings.
"""

import os
import platform
import re
from collections.abc import Sequence
from typing import Any

from certify.accept import Accepted
from certify.finding import Figure, Finding, Outcome
from certify.overview.cells import stacks
from certify.overview.faults import faults
from certify.overview.names import patterns

SIDE_FILES = 200  # that are named; so are groups of missing tensors, and units
CURVE = ("err_merged", "err_base", "err_rounding", "K", "K_max", "flips_merged_rounded")
QUANTILES = {"least": 0.0, "median": 0.5, "95 %": 0.95, "most": 1.0}
BIN = 0.05  # width of a bar; the last bar holds everything beyond 1


def overview(findings: Sequence[Finding], accepted: Sequence[Accepted]) -> dict[str, Any]:
    """JSON data. findings: of the whole run, without the accepted differences."""
    return {
        "stacks": stacks(findings, {difference.subject for difference in accepted}),
        "faults": faults(findings),
        "error": _error(findings),
        "layers": _layers(findings),
        "completeness": _completeness(findings),
        "side_files": _side_files(findings),
        "environment": {"system": platform.platform(), "machine": platform.machine(), "processors": os.cpu_count() or 0},
    }


def _error(findings: Sequence[Finding]) -> dict[str, Any]:
    """Over the merged tensors: the largest error of an element against what one rounding may use, a histogram by upper edge."""
    ratios = sorted(ratio for f in findings if f.code == "C4" and isinstance(ratio := f.figures.get("ratio"), float))
    count, last = len(ratios), round(1 / BIN)
    bars = [0] * (last + 1)
    for ratio in ratios:
        bars[min(max(0, -int(-ratio // BIN) - 1), last) if ratio > 1 + 1e-9 or ratio < 1 else last - 1] += 1
    return {
        "tensors": count,
        "quantiles": {name: ratios[round(share * (count - 1))] for name, share in QUANTILES.items()} if ratios else {},
        "histogram": [[round((bar + 1) * BIN, 2), held] for bar, held in enumerate(bars)],
    }


def _layers(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """What C9 found about each unit, in the order of their numbers; distances as shares of the answer."""
    units = [finding for finding in findings if finding.code == "C9"]
    units.sort(key=lambda finding: [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", finding.subject)])
    return [
        {"unit": unit.subject, "outcome": unit.outcome.value} | {name: _number(unit.figures.get(name)) for name in CURVE}
        for unit in units[: 2 * SIDE_FILES]
    ]


def _completeness(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """What C2 refuses, by problem and pattern."""
    problems: dict[str, list[str]] = {}
    for finding in findings:
        if finding.code == "C2" and finding.outcome is Outcome.FAILED:
            problems.setdefault(str(finding.figures.get("problem")), []).append(finding.subject)
    return [
        {"problem": problem, "pattern": pattern, "tensors": count}
        for problem, names in sorted(problems.items())
        for pattern, count in patterns(names)[:SIDE_FILES]
    ]


def _side_files(findings: Sequence[Finding]) -> list[dict[str, str]]:
    told = [finding for finding in findings if finding.code == "C7"]
    return [{"name": f.subject, "outcome": f.outcome.value, "sentence": f.sentence} for f in told[:SIDE_FILES]]


def _number(value: Figure) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
