"""The report directory while a run writes to it: apart from what is judged, and of one run at a time."""

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from certify.errors import UsageError

LOCK = ".lock"


def keep_apart(report: Path, judged: Iterable[Path]) -> None:
    """A checkpoint must not ship its own report, nor a report be judged. Raises UsageError."""
    for directory in judged:
        if report.resolve().is_relative_to(directory.resolve()):
            raise UsageError(f"--report {report} lies inside {directory}, which is being judged. Choose a directory outside.")
        if directory.resolve().is_relative_to(report.resolve()):
            raise UsageError(f"--report {report} contains {directory}, which is being judged. Choose a directory beside it.")


def occupy(report: Path) -> int:
    """The descriptor of the directory's lock; the lock ends with the process, or when it is closed. Raises UsageError, OSError."""
    report.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(report / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UsageError(
            f"--report {report}: another run is writing its report there. Wait for it, or choose another directory."
        ) from error
    except OSError:  # a file system without locks: nobody can be told apart there
        pass
    return descriptor
