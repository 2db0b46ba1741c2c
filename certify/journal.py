"""Evidence, shard by shard, bound to the bytes it was found in: a judgement that was killed continues, a repaired shard is judged again.

One line for each shard whose tensors are all judged: their names and homes, the sha256 of every file they were read from, and what each
check found. Only the newest line of a shard counts. A line is a JSON list of two: the HMAC-SHA256 of the terms of the judgement and of the
evidence, under the key of this user; then the evidence. What was torn, written under other terms or by somebody else is no evidence.
"""

import hashlib
import hmac
import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from certify.finding import Finding

EVIDENCE = "evidence.jsonl"


class Journal:
    """The journal of one report directory.

    key     the secret that makes a line ours; see `certify.key`
    terms   everything beside the shards themselves that findings depend on; a journal of other terms is begun anew
    digest  gives the sha256 of a file by its label, reading it if need be; raises OSError where findings cannot be bound to it

    Reading changes nothing: of several processes one records. Raises OSError where the directory cannot be read or written.
    """

    def __init__(self, directory: Path, key: bytes, terms: object, digest: Callable[[str], str]) -> None:
        self._path, self._key, self._digest = directory / EVIDENCE, key, digest
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
        """Keep a finished shard's evidence, durable when this returns, unless it stands there already or is bound to nothing."""
        names = fingerprint(tensors)
        try:
            homes = {label: self._digest(label) for label in files}
        except OSError:  # a file is gone, or was changed meanwhile: the certificate says so
            return
        if (line := self._line(shard, names)) and line["files"] == homes:
            return
        told = {subject: [finding.data for finding in found] for subject, found in findings.items()}
        self._places[shard] = self._append({"shard": shard, "tensors": names, "files": homes, "findings": told}), names

    def _append(self, line: dict[str, Any]) -> int:
        """The offset of a new line, which follows the last good one."""
        offset, data = self._good, self._sealed(json.dumps(line, sort_keys=True).encode())
        with self._open(os.O_RDWR | os.O_CREAT) as file:
            file.truncate(offset)
            file.seek(offset)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._good += len(data)
        return offset

    def _index(self) -> int:
        """Finds where each shard's newest line begins; how many bytes are whole lines of ours, of these terms."""
        good = 0
        if not os.path.lexists(self._path):
            return good
        with self._open(os.O_RDONLY) as file:
            for raw in file:
                line = self._unsealed(raw)
                if line is None:
                    break
                self._places[line["shard"]] = good, line["tensors"]
                good += len(raw)
        return good

    def _recall(self, shard: str, names: str) -> dict[str, list[Finding]] | None:
        line = self._line(shard, names)
        try:
            if line is None or any(self._digest(label) != digest for label, digest in line["files"].items()):
                return None
        except OSError:  # a file is gone: the checks say so
            return None
        return {subject: [Finding.of(data) for data in found] for subject, found in line["findings"].items()}

    def _line(self, shard: str, names: str) -> dict[str, Any] | None:
        """A shard's line, if it is about these tensors; read and proven again, since others may write to the file."""
        offset, tensors = self._places.get(shard, (0, ""))
        if tensors != names:
            return None
        with self._open(os.O_RDONLY) as file:
            file.seek(offset)
            return self._unsealed(file.readline())

    def _open(self, flags: int) -> BinaryIO:
        """The file itself, never what a link leads to."""
        descriptor = os.open(self._path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(f"{self._path} is no plain file")
        return os.fdopen(descriptor, "r+b" if flags & os.O_RDWR else "rb")

    def _sealed(self, evidence: bytes) -> bytes:
        tag = hmac.new(self._key, f"{self._terms}\n".encode() + evidence, hashlib.sha256).hexdigest()
        return b'["%b", %b]\n' % (tag.encode(), evidence)

    def _unsealed(self, raw: bytes) -> dict[str, Any] | None:
        """The evidence in one line, which is not looked at before the line is proven to be ours."""
        evidence = raw[len(self._sealed(b"")) - len(b"]\n") : -len(b"]\n")]
        if not hmac.compare_digest(raw, self._sealed(evidence)):
            return None
        line: dict[str, Any] = json.loads(evidence)
        return line


def fingerprint(data: object) -> str:
    """sha256 of any JSON data, hexadecimal."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
