"""The certificate as an in-toto Statement: what was judged, by digest, and what was found. JSON data only."""

import platform
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from certify.accept import Accepted
from certify.checks.c6_selfcheck import self_check
from certify.checks.c7_side_files import IDENTITY
from certify.checks.c8_fidelity import distribution
from certify.command import words
from certify.evidence import versions
from certify.expect.identity import base_identity
from certify.files import BASE, numbered
from certify.finding import Finding, Outcome
from certify.overview import overview
from certify.screen import Screening
from certify.seal import MERGED, Seal
from certify.verdict import TITLES, Verdict, not_judged

if TYPE_CHECKING:
    from certify.examination import Examination

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://mergegate.dev/certificate/v1"
FAILURES_MAX = 1000  # failures written out; `failures_total` counts all
WORST = 20


def statement(
    examination: "Examination",
    sealed: Seal,
    findings: Sequence[Finding],
    accepted: Sequence[Accepted],
    screening: Screening | None,
    verdict: Verdict,
    reason: str,
    run: int,
) -> dict[str, Any]:
    """The whole statement."""
    found = {"verdict": verdict.value, "reason": reason, "coverage": {"expected": examination.expected, "run": run}}
    return {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sealed.subjects.items()],
        "predicateType": PREDICATE,
        "predicate": found
        | _asked(examination, sealed, findings)
        | _answered(examination, findings, accepted)
        | {
            "screen": screening and {"state": screening.state.value, "findings": list(screening.findings)} | screening.figures,
            "versions": {"python": platform.python_version()} | versions(),
        },
    }


def _asked(examination: "Examination", sealed: Seal, findings: Sequence[Finding]) -> dict[str, Any]:
    """What was asked, by whom, and about what."""
    request = examination.request
    return {
        "level": request.level,
        "criterion": request.criterion,
        "output_dtype": request.output_dtype,
        "requester": request.requester,
        "command": shlex.join(["lora-certify", "run", *words(request)]),
        "accept_digest": examination.accepted.digest or None,
        "base": _directory(examination, BASE) | {"digest": sealed.folders[BASE], "identity": _identity(examination, findings)},
        "adapters": _adapters(examination, sealed),
        "merged": _directory(examination, MERGED),
    }


def _answered(examination: "Examination", findings: Sequence[Finding], accepted: Sequence[Accepted]) -> dict[str, Any]:
    """What was found."""
    request, failed = examination.request, [finding for finding in findings if finding.outcome not in (Outcome.PASSED, Outcome.UNDECIDED)]
    left_out = {entry[0]: entry for entry in not_judged(request.level)}
    return {
        "checks": {code: {"title": title} | _counts(code, findings) for code, title in TITLES.items() if code not in left_out},
        "not_judged": [{"code": code, "title": title, "sentence": sentence} for code, title, sentence in left_out.values()],
        "self_check": self_check(findings),
        "undecided": [f"{f.code} {f.subject}" for f in findings if f.outcome is Outcome.UNDECIDED][:FAILURES_MAX],
        "accepted": [asdict(difference) for difference in accepted],
        "loading": [asdict(finding) for finding in findings if finding.subject.endswith(": loading")],
        "tensors": _tensors(examination),
        "fidelity": distribution(findings, request.min_retention),
        "failures": [asdict(finding) for finding in failed[:FAILURES_MAX]],
        "failures_total": len(failed),
        "worst": _worst(findings),
        "overview": overview(findings, accepted),
    }


def bare(level: str, verdict: Verdict, reason: str) -> dict[str, Any]:
    """A statement about nothing."""
    predicate = {"verdict": verdict.value, "level": level, "reason": reason}
    return {"_type": STATEMENT, "subject": [], "predicateType": PREDICATE, "predicate": predicate}


def _directory(examination: "Examination", label: str) -> dict[str, Any]:
    names = examination.snapshot.names(label)
    size = sum(examination.snapshot.size(label, name) for name in names)
    return {"name": examination.folders[label].resolve().name, "files": len(names), "bytes": size}


def _identity(examination: "Examination", findings: Sequence[Finding]) -> dict[str, Any]:
    proven = any(finding.subject == IDENTITY and finding.outcome is Outcome.PASSED for finding in findings)
    return base_identity(examination.base.directory, examination.adapters, examination.request.base_digest, proven)


def _adapters(examination: "Examination", sealed: Seal) -> list[dict[str, Any]]:
    counts = (*examination.ledger.consumed, *(0 for _ in examination.adapters))
    return [
        {
            "name": adapter.directory.resolve().name,
            "digest": sealed.folders[label],
            "weight": weight,
            "claimed": not examination.request.adapters,
            "tensors": len(adapter.tensors),
            "consumed": consumed,
        }
        for label, adapter, weight, consumed in zip(
            numbered(len(examination.adapters)), examination.adapters, examination.weights, counts, strict=False
        )
    ]


def _counts(code: str, findings: Sequence[Finding]) -> dict[str, int]:
    outcomes = [finding.outcome for finding in findings if finding.code == code]
    return {outcome.name.lower(): outcomes.count(outcome) for outcome in Outcome}


def _tensors(examination: "Examination") -> dict[str, int]:
    """How many tensors of each kind there are; what is missing or extra is counted there alone. Without adapters no kind is known."""
    base, merged = {*examination.base.tensors, *examination.base.weight_map}, set(examination.merged.tensors)
    ledger = examination.ledger
    both = {*ledger.base.tensors, *ledger.touched} & merged if ledger.base else base & merged
    touched, replaced = {*ledger.parts, *ledger.composed} & both, {*ledger.replaced, *ledger.new} & both
    kinds = {"untouched": len(both - touched - replaced), "merged": len(touched), "replaced": len(replaced - touched)}
    base = (base if ledger.base is None else {*ledger.base.tensors} | (base - {*examination.base.tensors})) | {*ledger.new}
    if not examination.adapters:
        kinds = {"not judged": len(base & merged)}
    return kinds | {"missing": len(base - merged - examination.tensors.undone), "extra": len(merged - base)}


def _worst(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    judged = [finding for finding in findings if finding.code == "C4" and "ratio" in finding.figures]
    judged.sort(key=lambda finding: (-float(finding.figures["ratio"] or 0), finding.subject))
    return [{"subject": f.subject, "ratio": f.figures["ratio"], "retention": f.figures["retention"]} for f in judged[:WORST]]
