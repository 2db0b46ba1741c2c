"""The end of a judgement: the sha256 of everything it was about, and whether all of that still is what was judged."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from certify.checks.c1_files import CODE
from certify.finding import Finding, Outcome
from certify.inputs.digests import Digests
from certify.inputs.snapshot import Snapshot

MERGED = ""  # its label: subjects of the merged directory are bare names


@dataclass
class Seal:
    """subjects: every file of the merged directory → sha256.  folders: label of every other directory → its digest, or "" if unreadable."""

    subjects: dict[str, str] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def seal(digests: Digests, snapshot: Snapshot, folders: Mapping[str, Path], rested: Mapping[str, Set[str]]) -> Seal:
    """Hash first, then look: what did not change between the first look and the last had these bytes while it was judged.

    folders: label → directory      rested: label → the files without which there is no judgement
    """
    made = Seal()
    unreadable: dict[str, str] = {}
    for name in snapshot.names(MERGED):
        try:
            made.subjects[name] = digests.of(folders[MERGED] / name)
        except OSError as error:
            unreadable[name] = f"cannot be read: {error.strerror}"
    for label in folders.keys() - {MERGED}:
        try:
            made.folders[label] = digests.folder(folders[label])
        except OSError as error:
            made.folders[label] = ""
            unreadable[f"{label}{Path(str(error.filename)).name}"] = f"cannot be read: {error.strerror}"
    for label in folders:
        unreadable |= {label + name: told for name, told in snapshot.changes(label, rested[label]).items()}
    made.findings = [Finding(CODE, subject, Outcome.FAILED, told, {"problems": 1}) for subject, told in sorted(unreadable.items())]
    return made
