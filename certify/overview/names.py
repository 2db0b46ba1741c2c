"""Names of tensors, folded: where in the model a name lies, and many names in few words."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
RUNS = 8  # runs of numbers that are written out in one pair of braces


@dataclass(frozen=True, slots=True)
class Place:
    """model.layers.61.mlp.experts.7.gate_proj.weight: stack `model.layers`, layer 61, kind `mlp.experts.*.gate_proj.weight`.

    Outside the layers: no stack, no layer, and the kind is the whole name.
    """

    stack: str
    layer: int | None
    kind: str


def place(name: str) -> Place:
    """The first number in a name is its layer; later ones, experts for example, are folded."""
    parts = name.split(".")
    at = next((number for number, part in enumerate(parts) if NUMBER.fullmatch(part)), None)
    if at is None or at == len(parts) - 1:
        return Place("", None, name)
    return Place(".".join(parts[:at]), int(parts[at]), ".".join("*" if NUMBER.fullmatch(part) else part for part in parts[at + 1 :]))


def patterns(names: Iterable[str]) -> list[tuple[str, int]]:
    """(pattern, how many names it stands for), the largest first: model.layers.61.mlp.experts.{0..255}.gate_proj.weight, 256.

    Every pattern stands for exactly these names, and every name for one pattern.
    """

    def form(parts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple("0" if NUMBER.fullmatch(part) else part for part in parts)

    found = []
    for fixed, members in groupby(sorted((tuple(name.split(".")) for name in set(names)), key=form), key=form):
        rows = {tuple(int(part) for part, text in zip(parts, fixed, strict=True) if text == "0") for parts in members}
        for box, count in _boxes(rows):
            numbers = iter(box)
            found.append((".".join(next(numbers) if text == "0" else text for text in fixed), count))
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))


def joined(entries: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Patterns that differ in one part, in one: experts.7.{down_proj,gate_proj,up_proj}.weight."""
    left, found = dict(entries), list[tuple[str, int]]()
    while left:
        alike: dict[tuple[int, tuple[str, ...]], list[str]] = {}
        for pattern in left:
            told = pattern.split(".")
            for at in range(len(told) if "…" not in pattern else 0):
                alike.setdefault((at, (*told[:at], "", *told[at + 1 :])), []).append(pattern)
        (at, parts), members = max(alike.items(), key=lambda entry: len(entry[1]), default=((0, ()), list(left)[:1]))
        if len(members) == 1:
            return sorted([*found, *left.items()], key=lambda entry: (-entry[1], entry[0]))
        middle = "{" + ",".join(sorted(pattern.split(".")[at] for pattern in members)) + "}"
        found.append((".".join([*parts[:at], middle, *parts[at + 1 :]]), sum(left.pop(pattern) for pattern in members)))
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))


def _boxes(rows: Iterable[tuple[int, ...]]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Numbers by position as few products of sets: first numbers that share the rest stand together."""
    rests: dict[int, set[tuple[int, ...]]] = {}
    for row in rows:
        if not row:
            yield (), 1
            return
        rests.setdefault(row[0], set()).add(row[1:])
    alike: dict[frozenset[tuple[int, ...]], list[int]] = {}
    for first, rest in sorted(rests.items()):
        alike.setdefault(frozenset(rest), []).append(first)
    for shared, firsts in alike.items():
        for box, count in _boxes(shared):
            yield (braces(firsts), *box), len(firsts) * count


def braces(numbers: Iterable[int]) -> str:
    """7, {0..255}, {1,3,5..9}; many runs are cut short."""
    ordered = sorted(numbers)
    if len(ordered) == 1:
        return str(ordered[0])
    runs = [[number for _, number in run] for _, run in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0])]
    told = [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]
    return "{" + ",".join(told if len(told) <= RUNS else [*told[: RUNS - 2], "…", told[-1]]) + "}"
