"""deltalint and this gate, asked about the same merges.

Sound merges: a share of exam.sound's grid. Faults: all of exam.faults, at every site, where the gate's exam plants them: bf16 at
‖Δ‖/‖W‖ = 1e-2, which is deltalint's own ground, bf16 at 0.3 and fp32 at 1e-2. A fault that changes nothing counts for neither.

A tool refuses a merge with exit code 1. deltalint's "inconclusive" (3) and "unreadable" (2), and what it ends in a traceback (which its
command line gives exit code 1 as well), are counted apart: nothing was found, and nothing was let through.
"""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import certify
from certify.verdict import Verdict
from exam.faults import FAULTS, Fault
from exam.grid import FAMILIES, Bench, bench, overwrite, spoiled, stored
from exam.producers import PRODUCERS
from exam.site import Site, same_bits
from exam.sound import TWO, Shelf, alarm, grid
from merge.errors import MergeError

CONDITIONS = (("bf16", 1e-2), ("bf16", 3e-1), ("fp32", 1e-2))
EVERY = 13  # of the sound merges; prime to everything that takes turns in the grid
NAMES = {  # what deltalint says → causes, as exam.faults calls them, that it is counted as right for
    "DELTA_NOT_APPLIED": ("never merged",),
    "SIGN_FLIPPED": ("wrong sign",),
    "TRANSPOSED_DELTA": ("transposed",),
    "PARTIAL_RANK": ("4 of 8 ranks", "7 of 8 ranks"),
    "SCALING_MISMATCH": ("merged twice", "α/√r where α/r is due", "α/r where α/√r is due", "s = 1", "s = 1/r", "s = α",
                         "scaling applied twice", "factor 0.5", "factor 0.95", "factor 1.04", "factor 1.01"),
}  # fmt: skip


@dataclass(slots=True)
class Score:
    """Of one fault in one condition: how many trials, what each tool said, the causes that each named rightly in adapted tensors."""

    trials: int = 0
    adapted: int = 0
    ours: Counter[str] = field(default_factory=Counter)
    theirs: Counter[str] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)
    only_theirs: int = 0


def deltalint(base: Path, adapter: Path, merged: Path) -> tuple[str, set[str]]:
    """("pass", "refused", "inconclusive", "unreadable" or "crash", its diagnoses)."""
    from deltalint.check import CheckError, check_merge

    try:
        report = check_merge(str(base), str(adapter), str(merged))
    except CheckError:
        return "unreadable", set()
    except Exception:  # whatever it raises is what its user would see, and is counted
        return "crash", set()
    found = {layer.diagnosis for layer in report.layers if layer.diagnosis}
    return {"PASS": "pass", "FAIL": "refused"}.get(report.verdict.value, "inconclusive"), found


def certified(asked: Mapping[str, Any], fault: Fault) -> tuple[str, set[str]]:
    """The same words of this gate; a kind of adapter that it does not interpret must be named, with exit code 10."""
    certificate = certify.judge(**asked)
    verdict = {Verdict.CERTIFIED: "pass", Verdict.REJECTED: "refused"}.get(certificate.verdict, "inconclusive")
    causes = {str(finding.figures.get("cause", "")) for finding in certificate.findings}
    return verdict, {fault.cause} if fault.cause and any(fault.cause in cause for cause in causes) else set()


def planted(fault: Fault, at: Bench, room: Path) -> Iterator[tuple[dict[str, Any], bool]]:
    """The questions about one fault on one bench, as `certify.judge` takes them; True where it is in one adapted tensor."""
    torch.manual_seed(41)
    asked: dict[str, Any] = {"level": "weights", "min_retention": 0.0}
    if fault.plant is not None and (fault.family, (at.dtype, at.rho)) == (at.family, CONDITIONS[0]):
        case = spoiled(at.case, room)
        changed = fault.plant(case) or {}  # first: a fault of the base is planted in a copy of it
        yield asked | {"base": case.base, "adapter": case.adapter, "merged": case.merged} | changed, False
    for number, site in enumerate(site for site in at.sites if fault.spoil is not None and site.role in fault.roles):
        if (merged := _spoiled_tensor(fault, site)) is not None:
            case = spoiled(at.case, room / str(number))
            overwrite(case.merged, site.key, stored(site, case, merged))
            yield asked | {"base": case.base, "adapter": case.adapter, "merged": case.merged}, site.role == "adapted"


def _spoiled_tensor(fault: Fault, site: Site) -> torch.Tensor | None:
    """None where the fault makes no sense, or changes nothing that matters."""
    assert fault.spoil is not None
    merged = fault.spoil(site)
    return None if merged is None or same_bits(merged, site.sound) or site.right(merged) else merged


def faults(root: Path) -> dict[str, dict[tuple[str, float], Score]]:
    """Fault → condition → what was said."""
    root.mkdir()
    scores: dict[str, dict[tuple[str, float], Score]] = {name: defaultdict(Score) for name in FAULTS}
    for family in FAMILIES:
        for condition in CONDITIONS:
            at = bench(family, *condition, root)
            for name, fault in FAULTS.items():
                with tempfile.TemporaryDirectory(dir=root) as room:
                    for asked, adapted in planted(fault, at, Path(room)):
                        _count(scores[name][condition], asked, fault, adapted=adapted)
    return scores


def _count(score: Score, asked: Mapping[str, Any], fault: Fault, *, adapted: bool) -> None:
    ours, cause = certified(asked, fault)
    several = not isinstance(asked["adapter"], Path)  # deltalint takes one adapter
    theirs, codes = ("inconclusive", set[str]()) if several else deltalint(asked["base"], asked["adapter"], asked["merged"])
    score.trials += 1
    score.ours[ours] += 1
    score.theirs[theirs] += 1
    score.only_theirs += theirs == "refused" and ours == "pass"
    score.adapted += adapted
    score.named["ours"] += adapted and bool(cause)
    score.named["theirs"] += adapted and any(fault.cause in NAMES.get(code, ()) for code in codes)


def sound_merges(root: Path) -> dict[str, dict[str, Counter[str]]]:
    """Producer → tool → what was said about sound merges of one adapter, written in the base's dtype or another one."""
    said: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: {"ours": Counter(), "theirs": Counter()})
    root.mkdir()
    shelf = Shelf(root)
    for sound in grid(EVERY):
        inputs = shelf.inputs(sound)
        if sound.feature == TWO:
            continue
        with tempfile.TemporaryDirectory(dir=root) as room:
            out = Path(room) / "out"
            try:
                PRODUCERS[sound.producer](inputs, out, sound.output)
            except MergeError:  # exam.sound tells of what the engine refuses
                continue
            row = said[f"{sound.producer} (`{sound.criterion}`)" if sound.output == "same" else "another output dtype (`nearest`)"]
            row["ours"]["refused" if alarm(sound, inputs, out) else "pass"] += 1
            row["theirs"][deltalint(inputs.base, inputs.adapters[0], out)[0]] += 1
    return said
