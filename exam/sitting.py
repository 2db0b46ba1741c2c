"""One fault in one place, judged: what each of the checks that are named for it says about it."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import certify
from certify.finding import Outcome
from certify.verdict import Certificate, Verdict
from exam.faults import Fault
from exam.grid import Bench, overwrite, spoiled, stored
from exam.site import Site, same_bits

CODE = {"adapted": "C4", "silent": "C4", "replaced": "C4", "carried": "C3"}  # the check of a tensor's value
WHOLE = ("bf16", 1e-2)  # the bench where everything is judged; elsewhere `only` what the fault is about, where a pattern can say that
WEIGHTS = "*.weight"
OWN = {"C1", "C2", "C3", "C7"}  # checks that find nothing but about the subject they are asked about; C4 and C8 keep accounts of the whole


@dataclass(frozen=True)
class Cell:
    """One fault × place × check. outcome:

    caught           the check fails at the subject that it must name, and the verdict is REJECTED
    undecided        the check says that it cannot tell, and C4 fails
    not interpreted  the fault is of a kind that this version does not interpret; it says so, and the verdict is INCOMPLETE
    inside           other bytes, but each one that some right merge stores too: nothing is wrong here
    vacuous          the bytes of the sound merge
    silent           anything else: a defect of the gate
    """

    fault: str
    kind: str
    check: str
    site: str
    dtype: str
    rho: float
    outcome: str
    told: str = ""


def sit(fault: Fault, bench: Bench) -> Iterator[Cell]:
    """All cells of one fault on one bench, by one judgement, whatever the number of places."""
    torch.manual_seed(41)
    with tempfile.TemporaryDirectory() as room:
        if fault.plant is not None and fault.family == bench.family:
            yield from _in_files(fault, bench, Path(room))
        elif fault.spoil is not None:
            yield from _in_tensors(fault, bench, Path(room))


def _in_tensors(fault: Fault, bench: Bench, room: Path) -> Iterator[Cell]:
    """The same fault in one tensor of each kind; every check must fail at each of them, whatever it finds at the others."""
    assert fault.spoil is not None
    places = [site for site in bench.sites if site.role in fault.roles]
    planted = {site: tensor for site in places if (tensor := fault.spoil(site)) is not None}
    harmless = {site: _no_fault(site, tensor) for site, tensor in planted.items()}
    certificate = None
    if not all(harmless.values()):
        case = spoiled(bench.case, room)
        for site in (site for site, why in harmless.items() if not why):
            overwrite(case.merged, site.key, stored(site, case, planted[site]))
        level = "modules" if "C5" in fault.caught_by else "weights"
        only = None if (bench.dtype, bench.rho) == WHOLE else WEIGHTS
        certificate = certify.judge(case.base, case.adapter, case.merged, level=level, only=only, min_retention=0.0)
    for site, why in harmless.items():
        for code in fault.caught_by or {CODE[site.role]: ""}:
            found = (why, "") if why or certificate is None else _outcome(certificate, code, site.key, unknown=False)
            yield Cell(fault.name, fault.kind, code, site.kind, bench.dtype, bench.rho, *found)


def _no_fault(site: Site, merged: Tensor) -> str:
    """Why nothing is wrong with what was planted; empty where something is."""
    if same_bits(merged, site.sound):
        return "vacuous"
    return "inside" if site.right(merged) else ""


def _in_files(fault: Fault, bench: Bench, room: Path) -> Iterator[Cell]:
    assert fault.plant is not None
    case = spoiled(bench.case, room)
    asked: dict[str, Any] = {"base": case.base, "adapter": case.adapter, "merged": case.merged, "min_retention": 0.0}
    changed = fault.plant(case) or {}
    asked |= {"base": case.base} | changed
    vacuous = not changed and _alike(bench.case, case)
    if not changed and set(fault.caught_by) <= OWN and len(fault.caught_by) == 1 and (bench.dtype, bench.rho) != WHOLE:
        asked |= {"only": next(iter(fault.caught_by.values()))}
    certificate = None if vacuous else certify.judge(**asked)
    for code, subject in fault.caught_by.items():
        found = ("vacuous", "") if certificate is None else _outcome(certificate, code, subject, unknown=fault.unknown)
        yield Cell(fault.name, fault.kind, code, "files", bench.dtype, bench.rho, *found)


def _outcome(certificate: Certificate, code: str, subject: str, *, unknown: bool) -> tuple[str, str]:
    """(outcome, what the check says)."""
    named = [finding for finding in certificate.findings if finding.code == code and fnmatchcase(finding.subject, subject)]
    failed = [finding for finding in named if finding.outcome is Outcome.FAILED]
    if failed and certificate.verdict is Verdict.REJECTED:
        return "caught", failed[0].sentence
    if unknown and certificate.verdict is Verdict.INCOMPLETE:
        blind = [finding for finding in named if finding.outcome is Outcome.NOT_INTERPRETED]
        return ("not interpreted", blind[0].sentence) if blind else ("silent", certificate.reason)
    settled = any(f.code == "C4" and f.subject == subject and f.outcome is Outcome.FAILED for f in certificate.findings)
    if settled and certificate.verdict is Verdict.REJECTED and any(finding.outcome is Outcome.UNDECIDED for finding in named):
        return "undecided", named[0].sentence
    return "silent", f"{certificate.verdict}: {certificate.reason}"


def _alike(one: Any, other: Any) -> bool:
    """Whether two cases hold the same bytes in the same files."""
    pairs = ((one.base, other.base), (one.adapter, other.adapter), (one.merged, other.merged))
    return all(_contents(ours) == _contents(theirs) for ours, theirs in pairs)


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}
