"""The screen of a whole checkpoint: what was touched, how much of it survived, and what looks unusual. It knows no right or wrong.

`SUSPECT` is advice to look, never a rejection: a wrong adapter, a transposed or a doubled delta pass as `CONSISTENT`, and an adapter that
was lawfully trained on some layers only is `SUSPECT`. What can be proven without an adapter (a file, a key, a shape, NaN) is not the
screen's business but that of the checks; only NaN and infinity are seen here alone, and are handed over as findings.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import median, quantiles
from typing import Any

from certify.errors import DamagedError
from certify.finding import Finding, Outcome
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.dtypes import FLOATS
from certify.inputs.stored import Stored
from certify.screen.rank import sampled_rank
from certify.screen.siblings import apart, left_out, roles
from certify.screen.tensor import Touch, look
from certify.verdict import grouped

RANKED = 16  # tensors of which the rank is sampled: about 1 s each
LISTED = 1000  # findings and tensors written out; the counts count all
FAINT = 0.9  # retention below which a reader is told what was lost
BARE = 100  # changed elements that a row has in the mean, where a row without any is unusual
EMBEDDINGS = ("embed", "wte", "lm_head")  # their rows are tokens, and not every token is trained


class State(StrEnum):
    """What the screen says."""

    CONSISTENT = "CONSISTENT"  # with some low-rank merge, rounded once; with a wrong one as well
    SUSPECT = "SUSPECT"
    NOT_SCREENED = "NOT_SCREENED"  # nothing could be measured


@dataclass(frozen=True)
class Screening:
    """findings: sentences for a reader, never a rejection. faults: what no adapter can have done. figures: JSON data."""

    state: State
    findings: tuple[str, ...]
    faults: tuple[Finding, ...]
    figures: dict[str, Any]


def screen(base: Checkpoint, merged: Checkpoint) -> Screening:
    """Reads every tensor that both have, once. Damaged tensors are left to the checks."""
    return conclude(base, merged, dict(looked(base, merged)))


def conclude(base: Checkpoint, merged: Checkpoint, touches: Mapping[str, Touch]) -> Screening:
    """The screen from what was seen of each tensor; samples the ranks of a few."""
    faults = tuple(not_finite(name, touch) for name, touch in touches.items() if touch.not_finite)
    touched = {name: touch for name, touch in touches.items() if touch.touched}
    ranks, full = _ranks(base, merged, touched)
    findings = [f"{name}: {told}" for name, told in apart(touches).items()]
    findings += [f"{name}: {told}" for name, touch in touched.items() for told in _rows(name, touch)]
    findings += [f"{name}: the change is of full rank, or of {least} or more" for name, least in full.items()]
    if missed := left_out(touches):
        many = "tensors are" if len(missed) > 1 else "tensor is"
        findings.insert(0, f"{len(missed):,} {many} untouched, though most siblings changed: {grouped(missed)}")
    if touches and not touched:
        findings.insert(0, f"nothing was merged: all {len(touches):,} tensors equal the base's")
    state = State.NOT_SCREENED if not touches else State.SUSPECT if findings else State.CONSISTENT
    counts = {"tensors": len(touches), "touched": len(touched), "measured": sum(t.rho is not None for t in touched.values())}
    listed = dict(list(touched.items())[:LISTED])
    figures = {
        **counts,
        "unusual": len(findings),
        "left_out": missed[:LISTED],
        "not_finite": len(faults),
        "roles": _roles(touches, ranks),
        "lost": _lost(touched),
        "per_tensor": {name: _figures(touch) | ({"rank": ranks[name]} if name in ranks else {}) for name, touch in listed.items()},
    }
    return Screening(state, tuple(findings[:LISTED]), faults, figures)


def noted(found: Finding, base: Stored, merged: Stored) -> Finding:
    """C3's finding about one tensor with the screen's figures in it; where NaN or infinity was stored, the failure that this is.

    So the gate reads a tensor once in the process that examines it, and concludes from the findings of all.
    """
    try:
        touch = Touch(base.entry.elements, 0.0) if found.outcome is Outcome.PASSED else look(base, merged)
    except DamagedError:
        return found
    if touch is None:
        return found
    lost = not_finite(found.subject, touch) if touch.not_finite else found
    return replace(lost, figures={**lost.figures, **touch.figures()})


def gathered(findings: Iterable[Finding]) -> dict[str, Touch]:
    """What `noted` has left in findings."""
    return {finding.subject: touch for finding in findings if (touch := Touch.of(finding.figures)) is not None}


def not_finite(name: str, touch: Touch) -> Finding:
    """No adapter adds NaN or infinity: a failure of C4 whatever was merged."""
    sentence = f"{touch.not_finite:,} of {touch.elements:,} elements are NaN or infinite where the base is finite; no adapter adds that"
    return Finding("C4", name, Outcome.FAILED, sentence, {"elements": touch.elements, "beyond": touch.not_finite})


def looked(base: Checkpoint, merged: Checkpoint) -> Iterator[tuple[str, Touch]]:
    """Name and touch of every tensor that both have and that can be read."""
    for name, stored in base.tensors.items():
        if name in merged.tensors:
            try:
                touch = look(stored, merged.tensors[name])
            except DamagedError:
                continue
            if touch is not None:
                yield name, touch


def _rows(name: str, touch: Touch) -> Iterator[str]:
    """Rows without a change among rows that have many."""
    bare, rows = touch.untouched_rows, touch.rows
    if not bare or touch.share is None or touch.rho is None or any(part in name for part in EMBEDDINGS):
        return
    if touch.share * touch.elements / (rows - bare) >= BARE:
        yield f"{bare:,} of {rows:,} rows are untouched, the others changed in {touch.share * rows / (rows - bare):.1%} of their elements"


def _ranks(base: Checkpoint, merged: Checkpoint, touched: Mapping[str, Touch]) -> tuple[dict[str, int], dict[str, int]]:
    """(name → ranks seen, name → least rank where no low one shows), of a few tensors of each role, its first and last among them."""
    ranks: dict[str, int] = {}
    full: dict[str, int] = {}
    for name in _sample([name for name, touch in touched.items() if touch.rho and _matrix(base, merged, name)]):
        touch = touched[name]
        try:
            seen = sampled_rank(base.tensors[name], merged.tensors[name], touch.rho or 0.0, touch.retention or 0.0)
        except DamagedError:
            continue
        full |= {name: seen.least} if seen.least is not None else {}
        ranks |= {name: seen.rank} if seen.rank is not None else {}
    return ranks, full


def _matrix(base: Checkpoint, merged: Checkpoint, name: str) -> bool:
    sides = (base.tensors[name], merged.tensors[name])
    return all(len(side.shape) == 2 and min(side.shape) >= 8 and side.dtype in FLOATS for side in sides)


def _sample(names: list[str]) -> list[str]:
    """At most RANKED names: from every role its first, its last, its middle, and so on, role by role."""
    turns: list[tuple[int, str]] = []
    for members in roles(names).values():
        order = dict.fromkeys([0, len(members) - 1, len(members) // 2])
        turns += [(turn, members[place]) for turn, place in enumerate(order)]
    return [name for _, name in sorted(turns, key=lambda entry: entry[0])[:RANKED]]


def _figures(touch: Touch) -> dict[str, Any]:
    told = {"share": touch.share, "rho": touch.rho, "retention": touch.retention}
    return {name: None if value is None else float(f"{value:.4g}") for name, value in told.items()}


def _roles(touches: Mapping[str, Touch], ranks: Mapping[str, int]) -> list[dict[str, Any]]:
    """One entry per role that was touched: how many tensors, and the median and the range of their ρ."""
    told = []
    for role, members in roles(list(touches)).items():
        rhos = sorted(rho for name in members if (rho := touches[name].rho))
        touched = sum(touches[name].touched for name in members)
        if touched:
            kept = [value for name in members if (value := touches[name].retention) is not None]
            figures = {"rho": [rhos[0], median(rhos), rhos[-1]] if rhos else None, "retention": median(kept) if kept else None}
            seen = sorted({ranks[name] for name in members if name in ranks})
            told.append({"role": role, "tensors": len(members), "touched": touched, **figures, "ranks": seen})
    return sorted(told, key=lambda entry: str(entry["role"]))[:LISTED]


def _lost(touched: Mapping[str, Touch]) -> dict[str, Any]:
    """How much of the change the stored grid keeps, over the tensors that could be measured."""
    kept = [touch.retention for touch in touched.values() if touch.retention is not None]
    if not kept:
        return {"tensors": 0, "below": 0, "quartiles": []}
    return {"tensors": len(kept), "below": sum(k < FAINT for k in kept), "quartiles": quantiles(kept, n=4) if len(kept) > 1 else kept * 3}
