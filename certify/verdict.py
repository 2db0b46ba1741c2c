"""What the findings add up to: a verdict, its exit code, and one sentence that says why."""

import json
import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from certify import accept
from certify.accept import Accepted
from certify.checks import (
    c1_files,
    c2_completeness,
    c3_untouched,
    c4_merged,
    c5_modules,
    c6_selfcheck,
    c7_side_files,
    c8_fidelity,
    c9_layers,
    c10_logits,
)
from certify.finding import Finding, Outcome
from certify.request import LEVELS

EVERY_LEVEL = (accept, c1_files, c2_completeness, c3_untouched, c4_merged, c6_selfcheck, c7_side_files, c8_fidelity)
HIGHER = {
    "modules": (c5_modules, "each adapted module is run"),
    "layers": (c9_layers, "each decoder layer is run"),
    "logits": (c10_logits, "the model is run from end to end"),
}
TITLES: Final = {check.CODE: check.TITLE for check in (*EVERY_LEVEL, *(check for check, _ in HIGHER.values()))}
FINAL = (c4_merged.CODE, c8_fidelity.CODE)  # what they cannot tell, nobody else settles
GROUPS_SHOWN = 4  # groups of tensor names in the reason


class Verdict(StrEnum):
    CERTIFIED = "CERTIFIED"
    REJECTED = "REJECTED"
    INCOMPLETE = "INCOMPLETE"
    ERROR = "ERROR"


EXIT_CODES: Final = {Verdict.ERROR: 3, Verdict.REJECTED: 1, Verdict.INCOMPLETE: 10, Verdict.CERTIFIED: 0}


@dataclass(frozen=True)
class Certificate:
    """One judgement, done.

    reason     one sentence      statement  in-toto Statement v1, JSON data
    findings   failed first, then not interpreted, then passed; within each in the order in which they were made
    closing    those of them that only the end of a judgement could make: C0, C8 of the whole adapter, what changed meanwhile
    """

    verdict: Verdict
    level: str
    reason: str
    statement: dict[str, Any]
    findings: tuple[Finding, ...] = field(repr=False)
    closing: tuple[Finding, ...] = field(default=(), repr=False)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.verdict]

    def to_json(self) -> str:
        """The statement as a file: sorted, UTF-8 even where a checkpoint's names are not (a lone surrogate becomes its JSON escape)."""
        text = json.dumps(self.statement, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def decide(
    findings: Sequence[Finding], accepted: Sequence[Accepted] = (), *, run: int, expected: int, only: str | None, crashed: str | None
) -> tuple[Verdict, str]:
    """The verdict and its reason; of several that fit, the one that comes first in the order of exit codes.

    accepted: declared differences, which the findings hold no more
    """
    broken = [finding for finding in findings if finding.outcome is Outcome.FAILED and finding.code == c6_selfcheck.CODE]
    failed = [finding for finding in findings if finding.outcome is Outcome.FAILED and finding not in broken]
    unknown = [finding for finding in findings if finding.outcome is Outcome.NOT_INTERPRETED]
    if crashed is not None:
        return Verdict.ERROR, f"the gate itself failed: {crashed}."
    if failed:
        return Verdict.REJECTED, _rejection(failed)
    if broken:
        return Verdict.INCOMPLETE, f"{broken[0].code} {broken[0].sentence}."
    if unknown:
        subjects = {finding.subject for finding in unknown}
        more = f" (and {len(subjects) - 1} more)" if len(subjects) > 1 else ""
        return Verdict.INCOMPLETE, f"{unknown[0].code} {unknown[0].subject}{more}: {unknown[0].sentence}."
    if blind := undecided(findings, {difference.subject for difference in accepted}):
        settler = "" if blind[0].code in FINAL else ", and C4 did not pass"
        return Verdict.INCOMPLETE, f"{blind[0].code} {blind[0].subject}: {blind[0].sentence}{settler}."
    if only is not None:
        return Verdict.INCOMPLETE, f"only subjects that match {only!r} were judged: {run:,} of {expected:,}."
    if run < expected:
        return Verdict.INCOMPLETE, f"{run:,} of {expected:,} subjects were judged."
    passed = [finding for finding in findings if finding.outcome is Outcome.PASSED]
    warned = "".join(f"; {finding.code} warns: {finding.sentence}" for finding in passed if finding.sentence)
    declared = f" with {len(accepted):,} accepted difference{'s' if len(accepted) > 1 else ''}" if accepted else ""
    return Verdict.CERTIFIED, f"all {expected:,} subjects pass{declared}{warned}."


def undecided(findings: Sequence[Finding], declared: Set[str] = frozenset()) -> list[Finding]:
    """What a check could not tell and C4 did not settle: outputs that cannot tell block only there. Layers need C4 of all tensors.

    declared: subjects of accepted differences, which count as settled
    """
    judged = [finding for finding in findings if finding.code == c4_merged.CODE]
    settled = {finding.subject for finding in judged if finding.outcome is Outcome.PASSED}
    unsure = [finding for finding in findings if finding.outcome is Outcome.UNDECIDED]
    final = [finding for finding in unsure if finding.code in FINAL]
    doubtful = [finding for finding in unsure if finding.subject not in settled | declared and finding not in final]
    if len(settled) == len(judged):
        doubtful = [finding for finding in doubtful if finding.code == c5_modules.CODE]
    return final + doubtful


def not_judged(level: str) -> list[tuple[str, str, str]]:
    """(code, title, what would be done) of every check that a run at this level leaves out."""
    above = list(HIGHER)[LEVELS.index(level) :]
    return [(check.CODE, check.TITLE, f"at --level={name} {does}") for name in above for check, does in [HIGHER[name]]]


def grouped(names: Iterable[str]) -> str:
    """Tensor names, layer by layer: `model.layers.61.* ×32, lm_head.weight`."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_layer(name), []).append(name)
    largest = sorted(groups.items(), key=lambda group: -len(group[1]))
    shown = [f"{layer} ×{len(members)}" if len(members) > 1 else members[0] for layer, members in largest[:GROUPS_SHOWN]]
    rest = sum(len(members) for _, members in largest[GROUPS_SHOWN:])
    return ", ".join(shown) + (f" and {rest:,} more" if rest else "")


def _layer(name: str) -> str:
    """The layer that a tensor belongs to, or its own name outside the layers."""
    match = re.match(r"(.*?\.\d+)\..+", name)
    return f"{match[1]}.*" if match else name


def _rejection(failed: Sequence[Finding]) -> str:
    """What broke, check by check: what is missing, what is wrong, and where."""
    parts = []
    for sentence, chosen in _kinds(failed).items():
        if chosen:
            subjects = list(dict.fromkeys(finding.subject for finding in chosen))
            number = {"s": "s", "are": "are", "differ": "differ"} if len(subjects) > 1 else {"s": "", "are": "is", "differ": "differs"}
            detail = f" ({'the first: ' if len(subjects) > 1 else ''}{chosen[0].sentence})" if "missing" not in sentence else ""
            parts.append(f"{len(subjects):,} {sentence.format(**number)}: {grouped(subjects)}{detail}")
    parts += [finding.sentence for finding in failed if finding.figures.get("whole")]
    merged = [finding for finding in failed if finding.code == "C4"]
    other = {finding.figures.get("passes_under") for finding in merged}
    hint = ""
    if merged and len(other) == 1 and (criterion := other.pop()):
        hint = f"; every C4 failure would pass under --criterion {criterion}"
    return "; ".join(parts) + hint + "."


def _kinds(failed: Sequence[Finding]) -> dict[str, list[Finding]]:
    def chosen(code: str, *problems: object) -> list[Finding]:
        return [f for f in failed if f.code == code and (not problems or f.figures.get("problem") in problems)]

    off = [finding for finding in chosen("C4") if "beyond" in finding.figures]
    lost = [finding for finding in chosen("C3") + chosen("C4") if finding.figures.get("unreadable")]
    wrong = {finding.subject for finding in off}
    scales = chosen("C4", "scale")
    told = {id(finding) for finding in off + lost + scales}
    return {
        "tensor{s} of the base {are} missing": chosen("C2", "missing"),
        "merged tensor{s} {are} wrong": off,
        "untouched tensor{s} {differ} from the base": [finding for finding in chosen("C3") if id(finding) not in told],
        "tensor{s} cannot be read": lost,
        "tensor{s} {are} not of the base": [f for f in chosen("C2", "extra") if not f.figures.get("left_over")],
        "tensor{s} {are} left over": [f for f in chosen("C2") if f.figures.get("left_over")],
        "tensor{s} of another shape or dtype": chosen("C2", "shape", "dtype"),
        "tensor{s} of scales {are} not due": scales,
        "tensor{s} did not keep the delta": [f for f in chosen("C8") if not f.figures.get("whole")],
        "module{s} {are} answering wrongly": [f for f in chosen("C5") if f.subject not in wrong],
        "layer{s} {are} answering wrongly": chosen("C9"),
        "prediction{s} {are} not those of base + adapter": chosen("C10"),
        "declared difference{s} {are} expired or unused": chosen("C0"),
        "file{s} {are} unsound or stray": chosen("C1"),
        "side file{s} {are} not what base and adapter say": chosen("C7"),
        "fault{s} in the adapter's accounts": [finding for finding in chosen("C4") if id(finding) not in told],
    }
