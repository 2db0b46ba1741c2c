"""Evidence, shard by shard, bound to the bytes it was found in: a judgement that was killed continues, a repaired shard is judged again.

A line of JSON for the terms of the judgement, then one for each shard whose tensors are all judged: their names and homes, the sha256 of
every file they were read from, and what each check found. Only the newest line of a shard counts; a torn line is no evidence.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from certify.finding import Finding

EVIDENCE = "evidence.jsonl"
Homes = Mapping[str, str]  # label → sha256 of the files that a shard's tensors lie in, merged and base


class Journal:
    """The journal of one report directory.

    terms   everything beside the shards themselves that findings depend on; a journal of other terms is begun anew
    digest  gives the sha256 of a file by its label, reading it if need be

    Reading changes nothing: of several processes one records. Raises OSError where the directory cannot be read or written.
    """

    def __init__(self, directory: Path, terms: object, digest: Callable[[str], str]) -> None:
        self._path, self._digest = directory / EVIDENCE, digest
        self._terms = fingerprint(terms)
        self._places: dict[str, tuple[int, str]] = {}  # shard → offset of its line, fingerprint of its tensors
        self._served: dict[str, dict[str, list[Finding]] | None] = {}
        self._good = self._index()  # bytes of the file that can be used

    def recall(self, shard: str, tensors: object) -> dict[str, list[Finding]] | None:
        """What was found in a shard, by subject, if its tensors are those and all of its files hold the same bytes; else None."""
        if shard not in self._served:
            self._served = {shard: self._recall(shard, fingerprint(tensors))}  # one shard at a time: memory does not grow
        return self._served[shard]

    def record(self, shard: str, tensors: object, files: Sequence[str], findings: Mapping[str, Sequence[Finding]]) -> None:
        """Keep a finished shard's evidence, durable when this returns; nothing is written if it stands there already."""
        names, homes = fingerprint(tensors), {label: self._digest(label) for label in files}
        if self._places.get(shard, (0, ""))[1] == names and self._line(shard)["files"] == homes:
            return
        told = {subject: [asdict(finding) for finding in found] for subject, found in findings.items()}
        if not self._good:
            self._append({"terms": self._terms})
        self._places[shard] = self._append({"shard": shard, "tensors": names, "files": homes, "findings": told}), names

    def _append(self, line: dict[str, Any]) -> int:
        """The offset of a new line, which follows the last good one."""
        offset = self._good
        data = json.dumps(line, sort_keys=True).encode() + b"\n"
        with self._path.open("r+b" if self._path.exists() else "wb") as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._good += len(data)
        return offset

    def _index(self) -> int:
        """Finds where each shard's newest line begins; how many bytes are whole lines of these terms."""
        good = 0
        if self._path.exists():
            with self._path.open("rb") as file:
                for number, raw in enumerate(file):
                    line = _parsed(raw)
                    if line is None or (line.get("terms") != self._terms if number == 0 else "shard" not in line):
                        break
                    if number:
                        self._places[line["shard"]] = good, line["tensors"]
                    good += len(raw)
        return good

    def _recall(self, shard: str, names: str) -> dict[str, list[Finding]] | None:
        if self._places.get(shard, (0, ""))[1] != names:
            return None
        line = self._line(shard)
        try:
            if any(self._digest(label) != digest for label, digest in line["files"].items()):
                return None
        except OSError:  # a file is gone: the checks say so
            return None
        return {subject: [Finding.of(data) for data in found] for subject, found in line["findings"].items()}

    def _line(self, shard: str) -> dict[str, Any]:
        with self._path.open("rb") as file:
            file.seek(self._places[shard][0])
            line: dict[str, Any] = json.loads(file.readline())
        return line


def fingerprint(data: object) -> str:
    """sha256 of any JSON data, hexadecimal."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """One line; None if it was torn."""
    try:
        line = json.loads(raw) if raw.endswith(b"\n") else None
    except ValueError:
        return None
    return line if isinstance(line, dict) and ("terms" in line or {"shard", "tensors", "files", "findings"} <= line.keys()) else None
