"""The files of one judgement as they lay there when it began: what a certificate names must be what was judged."""

from collections.abc import Mapping, Set
from os import stat_result
from pathlib import Path

from certify.inputs.folder import every_file, hidden

Stamp = tuple[int, ...]
GONE, NEW = "it was removed while it was judged", "it was written after the judgement had begun, so that nobody has judged it"
UNSEEN = "it is reached through a link that leads back above this directory, so that nobody could watch it"
OTHER = "it was changed while it was judged: what was hashed need not be what was judged. Ask again when nobody writes there"


class Snapshot:
    """folders: label → directory. Take it before anything in them is read."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = dict(folders)
        self._stamps = {label: _stamps(directory) for label, directory in folders.items()}

    def names(self, label: str) -> list[str]:
        """The files of one directory, relative and sorted."""
        return sorted(self._stamps[label])

    def size(self, label: str, name: str) -> int:
        """Bytes."""
        return self._stamps[label][name][0]

    def holds(self, label: str, name: str) -> bool:
        """Whether a file is still the one that lay there."""
        return _stamp(self._folders[label] / name) == self._stamps[label].get(name)

    def changes(self, label: str, rested: Set[str]) -> dict[str, str]:
        """What happened to the files of one directory meanwhile; of hidden files, only to those that the judgement rests on."""
        directory, before = self._folders[label], self._stamps[label]
        after, found = _stamps(directory), {}
        for name in sorted(before.keys() | after.keys() | {name for name in rested if _stamp(directory / name)}):
            if name not in before:
                found[name] = NEW if name in after else UNSEEN
            elif before[name] != after.get(name):
                found[name] = OTHER if name in after else GONE
        return {name: what for name, what in found.items() if name in rested or not hidden(name)}


def _stamps(directory: Path) -> dict[str, Stamp]:
    found = {name: _stamp(directory / name) for name in every_file(directory)}
    return {name: stamp for name, stamp in found.items() if stamp is not None}


def _stamp(path: Path) -> Stamp | None:
    """What every write, rename and replacement alters; the change time cannot be set back. None: there is no such file."""
    try:
        found: stat_result = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev
