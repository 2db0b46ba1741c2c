"""The published schema of the certificate: strict, described field by field, and the same that the gate and the verifier speak.

That every certificate fits it is asked in one place, for all tests: tests/conftest.py.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from certify import examination, judge, statement
from certify.finding import Outcome
from certify.request import CRITERIA, LEVELS, OUTPUT_DTYPES
from certify.signoff import stated
from certify.signoff.stated import SCHEMA
from certify.verdict import TITLES, Verdict
from tests.test_certify.front_checkpoint import make

schema: dict[str, Any] = json.loads(SCHEMA.read_text(encoding="utf-8"))
predicate = schema["properties"]["predicate"]["properties"]


def _nodes(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        yield path, node
        for key, inner in node.items():
            yield from _nodes(inner, f"{path}/{key}")
    elif isinstance(node, list):
        for number, inner in enumerate(node):
            yield from _nodes(inner, f"{path}/{number}")


def test_it_is_a_schema_and_strict() -> None:
    Draft202012Validator.check_schema(schema)
    objects = [(path, node) for path, node in _nodes(schema) if node.get("type") == "object"]
    assert len(objects) > 20
    assert [path for path, node in objects if "additionalProperties" not in node] == []
    assert sorted(predicate) == schema["properties"]["predicate"]["else"]["required"]


def test_every_field_is_described_and_documented() -> None:
    told = (SCHEMA.parents[1] / "CERTIFICATE.md").read_text(encoding="utf-8")
    for path, node in _nodes(schema):
        for name, field in node.get("properties", {}).items() if not path.endswith(("/properties", "/if")) else ():
            assert name in told, f"CERTIFICATE.md does not speak of {name}"
            if field != {"type": "number"}:
                assert field.get("description") or "$ref" in field, f"{path}/{name} is not described"


def test_it_speaks_the_gates_words() -> None:
    assert schema["properties"]["_type"]["const"] == statement.STATEMENT == stated.STATEMENT
    assert schema["properties"]["predicateType"]["const"] == statement.PREDICATE == stated.PREDICATE
    assert predicate["verdict"]["enum"] == list(Verdict)
    assert predicate["level"]["enum"] == list(LEVELS)
    assert predicate["criterion"]["enum"] == list(CRITERIA)
    assert predicate["output_dtype"]["enum"] == list(OUTPUT_DTYPES)
    assert schema["$defs"]["outcome"]["enum"] == list(Outcome)
    code = Draft202012Validator(schema["$defs"]["code"])
    assert all(code.is_valid(name) for name in TITLES)
    assert not any(code.is_valid(name) for name in ("C11", "C", "c1", "C1 "))


def test_what_it_refuses(tmp_path: Path) -> None:
    question = make(tmp_path)
    told = judge(question.base, question.adapter, question.merged, level="weights").to_json()
    validator = Draft202012Validator(schema)
    assert validator.is_valid(json.loads(told))
    for path, value in {
        "subject.0.digest.sha256": "A" * 64,
        "subject.0.uri": "file:///etc/passwd",
        "predicate.verdict": "certified",
        "predicate.signed": True,
        "predicate.adapters.0.claimed": "no",
        "predicate.checks.C11": {},
        "predicate.coverage.run": -1,
        "predicate.worst.0.ratio": "small",
        "predicate.fidelity.min_retention": 2,
        "predicateType": "https://mergegate.dev/certificate/v2",
    }.items():
        spoiled = json.loads(told)
        *way, last = path.split(".")
        place: Any = spoiled
        for part in way:
            place = place[int(part)] if isinstance(place, list) else place[part]
        place[last] = value
        assert not validator.is_valid(spoiled), path


def test_the_tests_would_notice(misfits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = examination.statement
    monkeypatch.setattr(examination, "statement", lambda *given: made(*given) | {"signed": True})
    question = make(tmp_path)
    judge(question.base, question.adapter, question.merged, level="weights")
    assert misfits == ["$: Additional properties are not allowed ('signed' was unexpected)"]
    misfits.clear()
