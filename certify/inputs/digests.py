"""sha256 of files, taken from the reads that judge them: a shard of hundreds of gigabytes is read once, not once more for its digest."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from certify.inputs.folder import folder_digest

CHUNK = 4 << 20  # bytes read at a time where nobody else reads them
GAP = 1 << 27  # bytes; a header or a tensor that no check read is caught up with, a jump to another part of the file is not


@dataclass
class _Running:
    size: int
    position: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)


class Digests:
    """What is known of the files of one judgement. A digest is taken in file order; bytes seen out of order wait for `of`."""

    def __init__(self) -> None:
        self._running: dict[Path, _Running] = {}
        self._known: dict[Path, str] = {}
        self._told: set[Path] = set()

    def saw(self, path: Path, start: int, data: bytes) -> None:
        """Some bytes of a file, as they were read."""
        if path not in self._known:
            with suppress(OSError):  # the file is gone meanwhile; whoever asks for its digest will be told
                self._follow(path, start, data)

    def _follow(self, path: Path, start: int, data: bytes) -> None:
        running = self._running.setdefault(path, _Running(path.stat().st_size))
        if not running.position <= start <= running.position + GAP:
            data = data[running.position - start :] if start < running.position < start + len(data) else b""
        elif start > running.position:
            self._catch_up(path, running, start)
        running.sha256.update(data)
        running.position += len(data)
        if running.position >= running.size:
            self._known[path] = self._running.pop(path).sha256.hexdigest()

    def of(self, path: Path) -> str:
        """The digest of a file, hexadecimal; what was not seen of it is read now. Raises OSError."""
        if path not in self._known:
            running = self._running.pop(path, None) or _Running(0)
            self._catch_up(path, running, None)
            self._known[path] = running.sha256.hexdigest()
        return self._known[path]

    def folder(self, directory: Path) -> str:
        """One digest for a directory."""
        return folder_digest(directory, self.of)

    def news(self) -> dict[str, str]:
        """Digests that became known since this was last asked, for the process that writes the certificate."""
        fresh = self._known.keys() - self._told
        self._told |= fresh
        return {str(path): self._known[path] for path in sorted(fresh)}

    def learn(self, news: Mapping[str, str]) -> None:
        """Digests that another process of this judgement took."""
        self._known |= {Path(path): digest for path, digest in news.items()}

    @staticmethod
    def _catch_up(path: Path, running: _Running, stop: int | None) -> None:
        """Hash what lies between, up to `stop` or the end of the file."""
        with path.open("rb") as file:
            file.seek(running.position)
            while data := file.read(CHUNK if stop is None else min(CHUNK, stop - running.position)):
                running.sha256.update(data)
                running.position += len(data)
