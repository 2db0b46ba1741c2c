"""The files of a merged directory as a deployment meets them: every one counts, hidden ones too, and none may be a link."""

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from certify.errors import RefusedError
from certify.signoff.progress import Read, progress
from certify.signoff.regular import opened

CHUNK = 4 << 20  # bytes read at a time; hashlib releases the interpreter's lock meanwhile
THREADS = 16  # more than most machines' cores: storage over a network answers each of them late


def files(directory: Path) -> dict[str, int]:
    """Size in bytes of every file below a directory, by relative path. Raises RefusedError for a link, a pipe, a device; OSError."""
    return dict(sorted(_walk(directory)))


def digests(directory: Path, sizes: Mapping[str, int]) -> dict[str, str]:
    """sha256 of each file, hexadecimal; the largest are begun first. Raises RefusedError, OSError."""
    names = sorted(sizes, key=lambda name: -sizes[name])
    with progress(sum(sizes.values())) as read, ThreadPoolExecutor(THREADS) as threads:
        return dict(zip(names, threads.map(lambda name: _sha256(directory / name, read), names), strict=True))


def _walk(directory: Path) -> Iterator[tuple[str, int]]:
    folders = [""]
    for folder in folders:  # grows while it is walked
        with os.scandir(directory / folder) as entries:
            for entry in entries:
                name, found = folder + entry.name, entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    folders.append(f"{name}/")
                elif stat.S_ISREG(found.st_mode):
                    yield name, found.st_size
                elif stat.S_ISLNK(found.st_mode):
                    raise RefusedError(f"{name} is a symbolic link: what it points to can change after this")
                else:
                    raise RefusedError(f"{name} is neither a file nor a directory")


def _sha256(path: Path, read: Read) -> str:
    digest = hashlib.sha256()
    with opened(path) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            read(len(chunk))
    return digest.hexdigest()
