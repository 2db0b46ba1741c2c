"""The accept list: differences that somebody declared to be meant, each with a reason and an owner. They are told, never hidden.

    [[accept]]
    pattern = "model.layers.61.*"        # subjects, as the report names them: *, ?, […]
    codes = ["C2"]                       # optional; without it any check that can be accepted
    reason = "the MTP layer is not shipped"
    owner = "release@example.org"
    expires = 2027-03-31                 # optional; the last day on which it holds

An entry that accepts nothing, or has expired, fails: it is a door left open. What cannot be accepted, because then nothing would be known:
what could not be read (C1 but for stray files, unreadable tensors), what was not interpreted or left undecided, another base than the
declared one, a fault of the gate itself (C6, a crash), and the list's own failures.
"""

import hashlib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from certify.errors import UsageError
from certify.finding import Finding, Outcome

CODE = "C0"
TITLE = "declared differences are real, owned and not expired"
LIST_MAX = 1 << 20  # bytes
FIELDS = {"pattern", "codes", "reason", "owner", "expires"}
ACCEPTABLE = ("C1", "C2", "C3", "C4", "C5", "C7", "C8", "C9", "C10")
IDENTITY = "base: identity"  # the declared digest of the base: without it, what is the verdict about?


@dataclass(frozen=True, slots=True)
class Entry:
    """One declared difference. codes: empty for any check; expires: the last day on which it holds."""

    pattern: str
    reason: str
    owner: str
    codes: tuple[str, ...] = ()
    expires: date | None = None

    def covers(self, finding: Finding) -> bool:
        return fnmatchcase(finding.subject, self.pattern) and (not self.codes or finding.code in self.codes)


@dataclass(frozen=True, slots=True)
class Accepted:
    """One failure that an entry accepts; JSON-able with dataclasses.asdict."""

    subject: str
    code: str
    sentence: str
    pattern: str
    reason: str
    owner: str
    expires: str | None


@dataclass(frozen=True)
class AcceptList:
    """The entries of one file, and the sha256 of the file."""

    entries: tuple[Entry, ...] = ()
    digest: str = ""

    def apply(self, findings: Sequence[Finding], today: date, *, whole: bool = True) -> tuple[list[Finding], list[Accepted], list[Finding]]:
        """(the findings that are left, the accepted differences, C0: one finding per entry).

        whole: every subject was examined; else nothing can be said against an entry that accepted nothing.
        """
        left: list[Finding] = []
        accepted: list[Accepted] = []
        used: set[Entry] = set()
        for finding in findings:
            covering = self.covering(finding, today)
            used.update(covering)
            if covering:
                accepted.append(_accepted(finding, covering[0]))
            else:
                left.append(finding)
        return left, accepted, [_judged(entry, entry in used, today, whole) for entry in self.entries]

    def covering(self, finding: Finding, today: date) -> list[Entry]:
        """The entries that accept a failure, in the order of the file."""
        valid = (entry for entry in self.entries if entry.expires is None or today <= entry.expires)
        return [entry for entry in valid if acceptable(finding) and entry.covers(finding)]


def acceptable(finding: Finding) -> bool:
    """Whether a finding is a difference that somebody may answer for."""
    readable = not finding.figures.get("unreadable") and (finding.code != "C1" or bool(finding.figures.get("stray")))
    return finding.outcome is Outcome.FAILED and finding.code in ACCEPTABLE and finding.subject != IDENTITY and readable


def read(path: Path) -> AcceptList:
    """The list in one TOML file. Raises UsageError, naming the entry, for anything that is not understood."""
    try:
        if path.stat().st_size > LIST_MAX:
            raise UsageError(f"--accept {path}: larger than {LIST_MAX >> 20} MiB")
        raw = path.read_bytes()
        stated = tomllib.loads(raw.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(f"--accept {path}: {error}") from error
    entries = stated.pop("accept", None)
    if stated or not isinstance(entries, list) or not entries:
        surplus = f"{', '.join(map(repr, stated))} is not known; " if stated else ""
        raise UsageError(f"--accept {path}: {surplus}a list of [[accept]] tables was expected")
    found = []
    for number, entry in enumerate(entries, start=1):
        try:
            found.append(_entry(entry))
        except UsageError as error:
            raise UsageError(f"--accept {path}: entry {number}: {error}") from error
    if repeated := [entry.pattern for number, entry in enumerate(found) if entry in found[:number]]:
        raise UsageError(f"--accept {path}: {repeated[0]!r} is there twice")
    return AcceptList(tuple(found), hashlib.sha256(raw).hexdigest())


def _entry(stated: Any) -> Entry:
    if not isinstance(stated, dict):
        raise UsageError("a table was expected")
    if unknown := sorted(set(stated) - FIELDS):
        raise UsageError(f"{', '.join(unknown)} is not known; known are {', '.join(sorted(FIELDS))}")
    texts = {name: stated.get(name) for name in ("pattern", "reason", "owner")}
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise UsageError(f"{name} is {text!r}; a text was expected")
    if not re.search(r"\w", re.sub(r"\[[^\]]*\]", "", str(texts["pattern"]))):
        raise UsageError(f"the pattern {texts['pattern']!r} names nothing")
    codes, expires = stated.get("codes", []), stated.get("expires")
    if not isinstance(codes, list) or any(code not in ACCEPTABLE for code in codes) or (not codes and "codes" in stated):
        raise UsageError(f"codes is {codes!r}; a list out of {', '.join(ACCEPTABLE)} was expected")
    if expires is not None and (not isinstance(expires, date) or isinstance(expires, datetime)):
        raise UsageError(f"expires is {expires!r}; a date such as 2027-03-31 was expected")
    return Entry(**{name: str(text) for name, text in texts.items()}, codes=tuple(codes), expires=expires)


def _accepted(finding: Finding, entry: Entry) -> Accepted:
    expires = entry.expires.isoformat() if entry.expires else None
    return Accepted(finding.subject, finding.code, finding.sentence, entry.pattern, entry.reason, entry.owner, expires)


def _judged(entry: Entry, used: bool, today: date, whole: bool) -> Finding:
    """C0 of one entry."""
    subject = f"accept: {entry.pattern}" + (f" ({', '.join(entry.codes)})" if entry.codes else "")
    if entry.expires is not None and today > entry.expires:
        sentence = f"expired on {entry.expires.isoformat()}; {entry.owner} must renew it or have the merge repaired"
        return Finding(CODE, subject, Outcome.FAILED, sentence)
    if not used and whole:
        return Finding(CODE, subject, Outcome.FAILED, f"accepts nothing that failed; {entry.owner} must take it out")
    return Finding(CODE, subject, Outcome.PASSED)
