"""What is wrong, in groups that have one cause: a reader meets seven faults, not seven thousand findings."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

from certify.finding import Finding, Outcome
from certify.overview.names import joined, patterns, place

GROUPS, PATTERNS = 60, 6  # that are told; the others are counted
JOINED = 100  # patterns that are looked at for parts in common
PARTICULAR = re.compile(r"(\S+\.\d+\.[\w.]*\w)|\b\d+([.,]\d+)*")  # in a cause: names of tensors, and numbers
PROBLEMS = {
    "missing": "missing from the merged checkpoint",
    "extra": "not a tensor of the base",
    "shape": "stored with another shape than the base's",
}
WEIGHTS = ("C2", "C3", "C4")  # a layer, or a prediction, that is wrong where one of these is has no fault of its own


def faults(findings: Iterable[Finding]) -> dict[str, Any]:
    """Groups of failed and not interpreted findings: first by check, then the largest; and how many groups there are.

    A subject is in the group of the first check that refuses it; what other checks say about it is counted under `also`.
    """
    found: dict[str, list[Finding]] = {}
    layers: Counter[tuple[str, int | None]] = Counter()
    for finding in findings:
        if finding.code == "C2":
            where = place(finding.subject)
            layers[where.stack, where.layer] += 1
        if finding.outcome in (Outcome.FAILED, Outcome.NOT_INTERPRETED):
            found.setdefault(finding.subject, []).append(finding)
    for told in found.values():
        told.sort(key=_rank)
    follow = _consequences(found)
    alike: dict[tuple[bool, int, str], list[str]] = {}
    for subject in follow:
        first = found[subject][0]
        alike.setdefault((*_rank(first), PARTICULAR.sub("#", cause(first))), []).append(subject)
    groups = [(*key[:2], -len(members), members) for key, ones in alike.items() for members in gathered(ones)]
    groups.sort()
    return {"groups": [_group(found, members, follow, layers) for *_, members in groups[:GROUPS]], "total": len(groups)}


def cause(finding: Finding) -> str:
    """What the finding says is the matter, without what is particular to one tensor."""
    if finding.figures.get("unreadable"):
        return "cannot be read"
    if finding.code == "C2" and (problem := PROBLEMS.get(str(finding.figures.get("problem")))):
        return problem
    if finding.code == "C3" and "differing" in finding.figures:
        return "differs from the base, though no adapter touches it"
    if finding.figures.get("problem") == "dtype":
        return finding.sentence.partition(" (")[0]
    return str(finding.figures.get("cause") or finding.sentence)


def common(causes: Iterable[str]) -> str:
    """One sentence for all members of a group: what is particular to one of them is left out, unless it is the same for all."""
    first, *others = dict.fromkeys(causes)
    return PARTICULAR.sub(lambda found: "another tensor" if found[1] else "…", first) if others else first


def gathered(subjects: Sequence[str]) -> Iterator[list[str]]:
    """Subjects by kind of module over the layers, or by layer over the kinds: whichever gathers the most, again and again."""
    sets: dict[tuple[str, object], set[str]] = {}
    for subject in subjects:
        where = place(subject)
        sets.setdefault(("kind", (where.stack, where.kind)), set()).add(subject)
        if where.layer is not None:
            sets.setdefault(("layer", (where.stack, where.layer)), set()).add(subject)
    left = set(subjects)
    queue = [(-len(members), number, members) for number, members in enumerate(sets.values())]
    heapify(queue)
    while left:
        size, number, members = heappop(queue)
        members &= left
        if len(members) == -size:
            left -= members
            yield sorted(members)
        elif members:
            heappush(queue, (-len(members), number, members))


def _consequences(found: dict[str, list[Finding]]) -> dict[str, list[Finding]]:
    """Subjects with a fault of their own, and the findings about whole layers and predictions that follow from it."""
    wrong = [subject for subject, told in found.items() if told[0].code in WEIGHTS]
    follow: dict[str, list[Finding]] = {subject: [] for subject in found}
    for subject, told in found.items():
        if told[0].code == "C9" and told[0].outcome is Outcome.FAILED:
            inside = [name for name in wrong if name.startswith(f"{subject}.")]
        elif told[0].code in ("C9", "C10") and wrong:
            inside = wrong if told[0].code == "C10" else []
        else:
            continue
        for name in inside:
            follow[name].append(told[0])
        if inside:
            del follow[subject]
    return follow


def _group(
    found: dict[str, list[Finding]], members: list[str], follow: dict[str, list[Finding]], layers: Counter[tuple[str, int | None]]
) -> dict[str, Any]:
    """One group, as JSON data."""
    first, where = found[members[0]][0], place(members[0])
    also = Counter(finding.code for name in members for finding in found[name][1:])
    also.update(finding.code for finding in {id(finding): finding for name in members for finding in follow[name]}.values())
    shown = patterns(members)
    shown = joined(shown[:JOINED]) + shown[JOINED:]
    inside = all((place(name).stack, place(name).layer) == (where.stack, where.layer) for name in members)
    if where.layer is not None and inside and len(members) == layers[where.stack, where.layer] > 1:
        shown = [(f"{where.stack}.{where.layer}.*", len(members))]
    return {
        "code": first.code,
        "outcome": first.outcome.value,
        "cause": common(cause(found[name][0]) for name in members),
        "subjects": len(members),
        "places": [{"pattern": pattern, "subjects": count} for pattern, count in shown[:PATTERNS]],
        "places_total": len(shown),
        "example": first.subject,
        "sentence": first.sentence,
        "also": dict(sorted(also.items())),
    }


def _rank(finding: Finding) -> tuple[bool, int]:
    """Failures first, then by check."""
    return finding.outcome is not Outcome.FAILED, int(finding.code[1:])
