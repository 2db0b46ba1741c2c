"""What changed between two certificates: two releases, two runs of the gate, two versions of a library. Signatures are not looked at."""

from collections.abc import Callable
from typing import Any

from certify.errors import RefusedError
from certify.report.text import figure, printable
from certify.signoff.stated import Stated

SECTIONS = (  # of the predicate, compared value by value
    *("verdict", "level", "reason", "criterion", "output_dtype", "base", "adapters", "merged", "coverage", "tensors"),
    *("checks", "fidelity", "self_check", "accept_digest", "versions"),
)
LISTS = ("failures", "accepted", "loading")  # of findings, each known by its code and its subject
HIDDEN = ("title", "histogram", "5 %", "95 %")  # words, and what other values say as well
DEPTH = 6  # of nested values that are looked into; ours have 4
SHOWN = 20  # lines of one kind in the text; JSON holds all

Change = list[Any]  # [before, after], None where one of the two does not say


def compare(before: Stated, after: Stated) -> dict[str, Any]:
    """JSON data: `same`, and what changed under `values`, `files`, `failures`, `accepted`, `loading`, `tensors`, `undecided`.

    Each change is [before, after]. values: by dotted name; files: sha256 by path; tensors: [error / bound, retention] of those that
    either certificate counts among its worst.

    Raises RefusedError for a certificate whose lists are not what they should be.
    """
    told: dict[str, Any] = {"values": _changes(_flat(before), _flat(after)), "files": _changes(before.subjects, after.subjects)}
    for name in LISTS:
        told[name] = _changes(*(_keyed(side, name, lambda row: f"{row['code']} {row['subject']}", "sentence") for side in (before, after)))
    figures = [_keyed(side, "worst", lambda row: str(row["subject"]), "ratio", "retention") for side in (before, after)]
    told["tensors"] = _changes(*figures)
    told["undecided"] = _changes(*(dict.fromkeys(map(str, _rows(side, "undecided")), True) for side in (before, after)))
    return {"same": not any(told.values())} | told


def text(told: dict[str, Any]) -> list[str]:
    """The same for a reader, at most twenty lines of a kind."""
    if told["same"]:
        return ["Nothing changed: the same files, the same findings, the same versions."]
    lines = _some("", told["values"], lambda change: f"{_short(change[0])} → {_short(change[1])}")
    lines += _some("file ", told["files"], lambda change: f"{_digest(change[0])} → {_digest(change[1])}")
    for name, title in zip(LISTS, ("failure ", "accepted ", "loading "), strict=True):
        lines += _some(title, told[name], _finding)
    lines += _some("tensor ", told["tensors"], _figures)
    return lines + _some("undecided ", told["undecided"], lambda change: "no longer" if change[0] else "now")


def _changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Change]:
    pairs = {name: [before.get(name), after.get(name)] for name in {**before, **after}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _flat(side: Stated) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in SECTIONS:
        found |= _leaves(name, side.predicate.get(name), DEPTH)
    return found


def _leaves(name: str, value: Any, depth: int) -> dict[str, Any]:
    inner = value.items() if isinstance(value, dict) else enumerate(value, start=1) if isinstance(value, list) else None
    if inner is None or not depth:
        return {name: value}
    found: dict[str, Any] = {}
    for key, one in inner:
        if key not in HIDDEN:
            found |= _leaves(f"{name}.{key}", one, depth - 1)
    return found


def _rows(side: Stated, name: str) -> list[Any]:
    rows = side.predicate.get(name, [])
    if not isinstance(rows, list):
        raise RefusedError(f"the certificate's {name} is no list")
    return rows


def _keyed(side: Stated, name: str, key: Callable[[dict[str, Any]], str], *fields: str) -> dict[str, Any]:
    """The rows of a list by what they are about; of each the named fields."""
    try:
        return {key(row): [row.get(field) for field in fields] for row in _rows(side, name)}
    except (KeyError, TypeError, AttributeError) as error:
        raise RefusedError(f"the certificate's {name} are not what a certificate holds") from error


def _some(title: str, changes: dict[str, Change], told: Callable[[Change], str]) -> list[str]:
    lines = [printable(f"{title}{name}: {told(change)}") for name, change in list(changes.items())[:SHOWN]]
    return lines + ([f"… and {len(changes) - SHOWN:,} more ({title.strip() or 'value'}); --json lists all"] if len(changes) > SHOWN else [])


def _short(value: Any) -> str:
    return "(not stated)" if value is None else f"{figure(value):.200}"


def _digest(value: str | None) -> str:
    return f"{value:.12}…" if value else "(none)"


def _finding(change: Change) -> str:
    before, after = change
    if before is None or after is None:
        return f"{'new' if before is None else 'gone'}: {_short((after or before)[0])}"
    return f"was: {_short(before[0])}; is: {_short(after[0])}"


def _figures(change: Change) -> str:
    (ratio, kept), (then, left) = ([None, None] if side is None else side for side in change)
    return f"error / bound {_short(ratio)} → {_short(then)}, retention {_short(kept)} → {_short(left)}"
