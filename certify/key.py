"""The secret of this user under which evidence is kept: whoever can write a report directory cannot write evidence."""

import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

PLACE = Path("mergegate", "evidence.key")  # below $XDG_STATE_HOME, freedesktop.org's place for what a program keeps between runs
SIZE = 32  # bytes


def evidence_key(apart: Iterable[Path]) -> bytes | None:
    """The key, made on first use.

    None where it cannot be made, others could read it, or it lies in one of the directories that it must stay apart from.
    """
    try:
        path = _state() / PLACE
        if any(path.resolve().is_relative_to(directory.resolve()) for directory in apart):
            return None
        if not path.exists():
            _make(path)
        return _read(path)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return None


def _state() -> Path:
    stated = Path(os.environ.get("XDG_STATE_HOME", ""))
    return stated if stated.is_absolute() else Path.home() / ".local" / "state"


def _make(path: Path) -> None:
    """Under its name at once and whole: of two processes that begin together, both read the key of one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent) as file:  # mode 0600
        file.write(secrets.token_bytes(SIZE))
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(file.name, path)


def _read(path: Path) -> bytes | None:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077
        return file.read() if ours and found.st_size == SIZE else None
