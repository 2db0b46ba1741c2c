"""What a certificate file states, read by somebody who did not write it. Fields that are not needed here are let through.

Verification years later must read certificates of other versions. What a certificate of this version holds, field by field, is SCHEMA.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certify.errors import DamagedError, RefusedError
from certify.inputs.strict_json import parse_object
from certify.request import DIGEST, LEVELS

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://mergegate.dev/certificate/v1"
SCHEMA = Path(__file__).parents[1] / "schema" / "certificate-v1.json"  # JSON Schema, draft 2020-12


@dataclass(frozen=True, slots=True)
class Stated:
    """subjects: sha256 by relative path, of every file of the merged directory      predicate: as the JSON has it"""

    subjects: dict[str, str]
    verdict: str
    level: str
    reason: str
    predicate: dict[str, Any]

    @property
    def claimed(self) -> list[dict[str, Any]]:
        """The adapters that nobody named but the merged directory itself."""
        return [adapter for adapter in self.predicate["adapters"] if adapter.get("claimed") is not False]


def stated(raw: bytes) -> Stated:
    """The certificate in these bytes. Raises RefusedError for anything else."""
    try:
        statement, repeated = parse_object(raw)
    except DamagedError as error:
        raise RefusedError(f"the certificate is {error}") from error
    if repeated:
        raise RefusedError(f"the certificate holds the key {repeated[0]!r} twice")
    for name, known in {"_type": STATEMENT, "predicateType": PREDICATE}.items():
        if statement.get(name) != known:
            raise RefusedError(f"the certificate's {name} is {statement.get(name)!r}, not {known!r}")
    predicate: Any = statement.get("predicate")
    match predicate:
        case {"verdict": str(verdict), "level": str(level), "reason": str(reason), "adapters": [*adapters]} if level in LEVELS:
            if all(isinstance(adapter, dict) for adapter in adapters):
                return Stated(_subjects(statement.get("subject")), verdict, level, reason, predicate)
    raise RefusedError("the certificate's predicate lacks a verdict, a known level, a reason or adapters")


def _is_possible(name: str) -> bool:
    """Whether a file can be called so. A byte that is no UTF-8 travels as a lone surrogate of U+DC80 to U+DCFF; others are none."""
    try:
        return b"\0" not in name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def _subjects(entries: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in entries if isinstance(entries, list) else []:
        match entry:
            case {"name": str(name), "digest": {"sha256": str(digest)}} if DIGEST.fullmatch(digest):
                pass
            case _:
                raise RefusedError(f"the certificate's subject {entry!r:.200} lacks a name or a sha256")
        if any(part in ("", ".", "..") for part in name.split("/")) or not _is_possible(name):
            raise RefusedError(f"the certificate's subject {name!r} is no path inside a directory")
        if name in found:
            raise RefusedError(f"the certificate names the file {name!r} twice")
        found[name] = digest
    if not found:
        raise RefusedError("the certificate names no file")
    return found
