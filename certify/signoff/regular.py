"""Regular files of a place that nobody vouches for: a pipe or a device is refused, never waited for."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from certify.errors import RefusedError


def opened(path: Path, *, follow: bool = False) -> BinaryIO:
    """A regular file, open for reading. follow: a link in its place is followed, else an OSError."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise RefusedError(f"{path} is not a regular file")
    return file


def content(path: Path, most: int) -> bytes:
    """All bytes of a file of at most `most` bytes; links are followed. Raises RefusedError, OSError."""
    with opened(path, follow=True) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise RefusedError(f"{path} has {size:,} bytes; at most {most:,} are read")
        return file.read(most)
