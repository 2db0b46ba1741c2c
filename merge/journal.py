"""Append-only progress of one merge in OUT/.merge/, bound to everything that decides its bytes."""

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merge.errors import NOTHING_WRITTEN, OutputError
from merge.operation import ShardRecord
from merge.sink import STATE, Sink

JOURNAL, LOCK = "journal.jsonl", "lock"
MEANING = {
    "engine": "another engine version",
    "options": "other options",
    "base": "another base, or base shards that changed since (name, size, modification time or inode)",
    "adapters": "another adapter, or one that changed since (sha256)",
    "plan": "another plan",
}


class Journal:
    """The journal of one output directory, locked for this process while it is open."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._folder = sink.out / STATE
        self._file: int | None = None
        self._lock = os.open(self._folder / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            current = os.fstat(self._lock).st_ino == (self._folder / LOCK).stat().st_ino  # not one that a finished merge removed
        except OSError:
            current = False
        if not current:
            os.close(self._lock)
            raise OutputError(f"{sink.out}: another process is merging into this directory. {NOTHING_WRITTEN}")

    def resume(self, facts: Mapping[str, Any]) -> dict[str, ShardRecord]:
        """What an earlier run finished, after its facts were found equal; begins the journal where there is none.

        facts  JSON data: engine, options, base, adapters, plan, and the files that the merge will write

        Raises OutputError naming what differs.
        """
        lines = read(self._sink.out)
        if lines:
            refuse_changed(self._sink.out, lines[0], facts)
        self._file = os.open(self._folder / JOURNAL, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
        self._drop_torn_line(lines)
        if not lines:
            self._append(facts)
            self._sink.sync_folder(self._folder)
        return {line["file"]: _record(line) for line in lines[1:]}

    def finished(self, record: ShardRecord) -> None:
        """A shard is durable under its final name."""
        self._append({"file": record.file, "size": record.size, "blocks": list(record.blocks), "sums": dict(record.sums)})

    def close(self, *, done: bool = False) -> None:
        """Release the lock; when the merge is done the state is removed first, the lock last."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if done:
            (self._folder / JOURNAL).unlink(missing_ok=True)
            (self._folder / LOCK).unlink(missing_ok=True)
        os.close(self._lock)
        if done and not any(self._folder.iterdir()):
            self._folder.rmdir()

    def _append(self, data: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._sink.write(self._file, memoryview(json.dumps(data, sort_keys=True).encode() + b"\n"), 0)
        os.fsync(self._file)

    def _drop_torn_line(self, lines: list[dict[str, Any]]) -> None:
        """Cut off what a crash left of a line, so that the next one begins at its own place."""
        assert self._file is not None
        whole = sum(len(json.dumps(line, sort_keys=True).encode()) + 1 for line in lines)
        os.ftruncate(self._file, whole)


def _record(line: Mapping[str, Any]) -> ShardRecord:
    sums = {name: tuple(values) for name, values in line["sums"].items()}
    return ShardRecord(line["file"], line["size"], tuple(line["blocks"]), sums)


def read(out: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal, the facts first; a line torn by a crash, and what follows it, is left out."""
    try:
        raw = (out / STATE / JOURNAL).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return []
    lines: list[dict[str, Any]] = []
    for line in raw.split(b"\n")[:-1]:
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines


def refuse_changed(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises OutputError if a half-finished or finished output was begun with anything else than what is asked now."""
    changed = [meaning for key, meaning in MEANING.items() if before.get(key) != now.get(key)]
    if changed:
        named = [meaning for meaning in changed if meaning != MEANING["plan"]] or changed  # the plan follows from the others
        raise OutputError(
            f"{out} belongs to another merge: it was begun with {'; '.join(named)}.\n"
            f"Give another --out, or remove it with: python -m merge clean --out {out}\n{NOTHING_WRITTEN}"
        )
