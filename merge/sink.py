"""All writing below OUT: under a temporary name, made durable, then renamed. Nothing appears under its final name half done."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

PARTIAL = ".partial"
STATE = ".merge"  # journal and lock of a merge in progress
MODE = 0o644


class Sink:
    """The effects of a merge on its output directory, each one small enough to fail alone."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def prepare(self) -> None:
        """Make OUT and its state directory."""
        (self.out / STATE).mkdir(parents=True, exist_ok=True)

    def begin(self, file: str, header: bytes, size: int) -> int:
        """A new temporary file of its final size with its header written; the descriptor to write the rest through."""
        descriptor = os.open(self._partial(file), os.O_CREAT | os.O_RDWR | os.O_TRUNC, MODE)
        os.fchmod(descriptor, MODE)  # whatever the umask says
        os.ftruncate(descriptor, size)
        self.write(descriptor, memoryview(header), 0)
        return descriptor

    def write(self, descriptor: int, data: memoryview, start: int) -> None:
        """All of `data` at one place."""
        done = 0
        while done < len(data):
            done += os.pwrite(descriptor, data[done:], start + done)

    def flush(self, descriptor: int) -> None:
        """Start the disk on what is written so far, and give back the memory of what it has already stored.

        A merge writes more than any page cache holds; pages that are used again cost a third of pages that are new.
        """
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def commit(self, file: str, descriptor: int) -> None:
        """Make a finished file durable, then give it its name."""
        os.fsync(descriptor)
        path = self._partial(file).replace(self.out / file)
        self.sync_folder(path.parent)

    def whole(self, file: str, data: bytes) -> None:
        """A small file in one go, as durable as a shard."""
        path = self.out / file
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = self.begin(file, data, len(data))
        try:
            self.commit(file, descriptor)
        finally:
            os.close(descriptor)

    def carry(self, file: str, source: Path) -> None:
        """A copy of a side file, symbolic links followed, with an ordinary mode."""
        path = self._partial(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
        path.chmod(MODE)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            self.commit(file, descriptor)
        finally:
            os.close(descriptor)

    def remove(self, files: Iterable[str]) -> None:
        """Remove files and their temporary forms, where they exist."""
        for file in files:
            (self.out / file).unlink(missing_ok=True)
            self._partial(file).unlink(missing_ok=True)
            for folder in (self.out / file).parents:
                if folder == self.out or any(folder.iterdir()):
                    break
                folder.rmdir()

    def sync_folder(self, folder: Path) -> None:
        """Make renames in a folder durable."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _partial(self, file: str) -> Path:
        path = self.out / file
        return path.with_name(path.name + PARTIAL)
