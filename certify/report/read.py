"""certificate.json, read by somebody who did not write it: what the page shows is there, and is of the kind that it should be."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from certify.errors import DamagedError, UsageError
from certify.inputs.strict_json import read_object
from certify.report.text import printable

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://mergegate.dev/certificate/v1"
MOST = 100_000  # entries of one list or object

# A shape: a type; a tuple of alternatives, None among them; a list of one shape; an object with these keys ("key?" may be absent),
# or, under "*", with any keys.
SCALAR = (str, float, bool, None)
FINDING = {"code": str, "subject": str, "outcome": str, "sentence": str, "figures": {"*": SCALAR}}
SIDE = {"name": str, "files": int, "bytes": int}
IDENTITY = {"status": str, "stated": [str]}
BARS = [[float]]
COUNTS = {"passed": int, "failed": int, "not_interpreted": int, "undecided": int}
CELL = {"layer": (int, None), "tensors": int} | {f"{name}?": int for name in ("merged", "missing", "extra", "failed", "open", "accepted")}
CELL |= {"ratio?": float, "ratio_at?": str, "retention?": float, "retention_at?": str, "wrong?": str}
STACK = {
    "name": str, "layers": [(int, None)], "layers_total": int, "kinds": [{"name": str, "tensors": int, "cells": [CELL]}],
    "kinds_total": int, "untouched": [{"name": str, "tensors": int}], "untouched_total": int,
}  # fmt: skip
GROUP = {
    "code": str, "outcome": str, "cause": str, "subjects": int, "places": [{"pattern": str, "subjects": int}], "places_total": int,
    "example": str, "sentence": str, "also": {"*": int},
}  # fmt: skip
UNIT = {"unit": str, "outcome": str} | dict.fromkeys(("err_merged", "err_base", "err_rounding", "K", "K_max"), (float, None))
OVERVIEW = {
    "stacks": [STACK],
    "faults": {"groups": [GROUP], "total": int},
    "error": {"tensors": int, "quantiles": {"*": float}, "histogram": BARS},
    "layers": [UNIT],
    "completeness": [{"problem": str, "pattern": str, "tensors": int}],
    "side_files": [{"name": str, "outcome": str, "sentence": str}],
    "environment": {"system": str, "machine": str, "processors": int},
}
SCREEN = {"state": str, "findings": [str], "touched": int, "tensors": int, "lost": {"tensors": int, "quartiles": [float]}}
PREDICATES = {
    "verdict": str, "level": str, "reason": str, "criterion": str, "output_dtype": str, "command": str,
    "requester?": (str, None),
    "base": SIDE | {"digest": str, "identity": IDENTITY},
    "merged": SIDE,
    "adapters": [{"name": str, "digest": str, "weight": float, "claimed": bool, "tensors": int, "consumed": int}],
    "checks": {"*": COUNTS | {"title": str}},
    "not_judged": [{"code": str, "title": str, "sentence": str}],
    "self_check": {"armed": int, "planted": int, "hypothesis_examples": int, "not_armable": [str]},
    "undecided": [str],
    "accepted": [dict.fromkeys(("code", "subject", "sentence", "pattern", "reason", "owner"), str) | {"expires": (str, None)}],
    "screen": (SCREEN, None),
    "coverage": {"expected": int, "run": int},
    "tensors": {"*": int},
    "fidelity": {"retention": (float, None), "min_retention": float, "tensors": int, "quantiles": {"*": {"*": float}}, "histogram": BARS},
    "failures": [FINDING],
    "failures_total": int,
    "worst": [{"subject": str, "ratio": float, "retention": (float, None)}],
    "versions": {"*": str},
    "overview": OVERVIEW,
}  # fmt: skip
SHAPE = {"_type": str, "predicateType": str, "subject": [{"name": str, "digest": {"sha256": str}}], "predicate": PREDICATES}
VERDICTS = ("CERTIFIED", "REJECTED", "INCOMPLETE", "ERROR")


def read(path: Path) -> dict[str, Any]:
    """The statement in a file. Raises UsageError for what is not a certificate of this version, or contradicts itself."""
    try:
        statement = read_object(path)
    except DamagedError as error:
        raise UsageError(printable(str(error))) from error
    if problem := refusal(statement):
        raise UsageError(f"{printable(path.name)} is no certificate that this version can show: {printable(problem)[:300]}")
    return statement


def refusal(statement: dict[str, Any]) -> str | None:
    """Why a statement cannot be shown; None if it can."""
    for name, known in {"_type": STATEMENT, "predicateType": PREDICATE}.items():
        if statement.get(name) != known:
            return f"{name} is {statement.get(name)!r}, not {known!r}"
    predicate = statement.get("predicate")
    if isinstance(predicate, dict) and "overview" not in predicate:
        return "it has no overview, as the certificates of older versions; judge again to have a page"
    if problem := next(_misfits(statement, SHAPE, ""), None):
        return problem
    assert isinstance(predicate, dict)
    if predicate["verdict"] not in VERDICTS:
        return f"there is no verdict {predicate['verdict']!r}"
    if any(not (code[:1] == "C" and code[1:].isascii() and code[1:].isdecimal()) for code in _codes(predicate)):
        return "a check has a code that does not exist"
    covered = predicate["coverage"]
    bad = [code for code, check in predicate["checks"].items() if check["failed"] or check["not_interpreted"]]
    if predicate["verdict"] == "CERTIFIED" and (bad or predicate["failures_total"] or covered["run"] != covered["expected"]):
        return "it says CERTIFIED, and that something failed or was not examined"
    return None


def _codes(predicate: dict[str, Any]) -> list[str]:
    groups = predicate["overview"]["faults"]["groups"]
    return [*predicate["checks"], *(code for group in groups for code in (group["code"], *group["also"]))]


def _misfits(value: Any, shape: Any, where: str) -> Iterator[str]:
    """What does not fit, in words."""
    if isinstance(shape, tuple):
        if not any(next(_misfits(value, one, where), None) is None for one in shape):
            yield f"{where} is none of the kinds that it may be"
    elif isinstance(shape, list):
        if not isinstance(value, list) or len(value) > MOST:
            yield f"{where} is not a list of at most {MOST:,} entries"
        else:
            for number, item in enumerate(value):
                yield from _misfits(item, shape[0], f"{where}[{number}]")
    elif isinstance(shape, dict):
        yield from _object_misfits(value, shape, where)
    elif not _is(value, shape):
        yield f"{where} is {type(value).__name__}, {getattr(shape, '__name__', 'null')} was expected, finite and in range"


def _object_misfits(value: Any, shape: dict[str, Any], where: str) -> Iterator[str]:
    if not isinstance(value, dict) or len(value) > MOST:
        yield f"{where or 'the statement'} is not an object of at most {MOST:,} entries"
    elif "*" in shape:
        for name, item in value.items():
            yield from _misfits(item, shape["*"], f"{where}.{name[:40]}")
    else:
        for key, wanted in shape.items():
            name = key.removesuffix("?")
            if name in value:
                yield from _misfits(value[name], wanted, f"{where}.{name}".lstrip("."))
            elif key == name:
                yield f"{where}.{name}".lstrip(".") + " is missing"


def _is(value: Any, kind: type | None) -> bool:
    if kind is None or kind is bool:
        return value is None if kind is None else isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind is int:
        return isinstance(value, int) and 0 <= value < 2**63
    if kind is float:
        return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max  # false for NaN
    return isinstance(value, kind)
