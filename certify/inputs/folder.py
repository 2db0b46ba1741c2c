"""What lies in a directory: as its digest sees it, and as whoever opens files by name sees it."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

CHUNK = 4 << 20  # bytes read at a time while hashing


def regular_files(directory: Path) -> list[str]:
    """Every regular file below a directory, relative and sorted; links to files count, names with a part that begins with "." do not."""
    found = []
    for root, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        here = Path(root)
        found += [(here / name).relative_to(directory).as_posix() for name in names if not name.startswith(".") and (here / name).is_file()]
    return sorted(found)


def every_file(directory: Path) -> list[str]:
    """Every file that can be opened below a directory, relative and sorted: hidden ones too, and through linked folders, each once."""
    found, waiting, seen = [], [directory], {*directory.resolve().parents}
    for top in waiting:  # grows while it is walked: what lies here by itself comes before what is linked
        for root, folders, names in os.walk(top):
            here = Path(root)
            if (real := here.resolve()) in seen:
                folders.clear()
                continue
            seen.add(real)
            waiting += sorted(here / name for name in folders if (here / name).is_symlink())
            found += [(here / name).relative_to(directory).as_posix() for name in names if (here / name).is_file()]
    return sorted(found)


def visible_files(directory: Path) -> list[str]:
    """Those that no part of whose name hides."""
    return [name for name in every_file(directory) if not hidden(name)]


def hidden(name: str) -> bool:
    """Whether a part of a relative name begins with a dot."""
    return any(part.startswith(".") for part in name.split("/"))


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def folder_digest(directory: Path, digest: Callable[[Path], str] = sha256) -> str:
    """One digest for a directory's regular files; `digest` gives that of one file."""
    return listing_digest({name: digest(directory / name) for name in regular_files(directory)})


def listing_digest(files: Mapping[str, str]) -> str:
    """One digest for many files (relative path → sha256): sha256 over the sorted lines `sha256␠␠relative/path\\n`.

    A name that holds a line feed would otherwise be another file's line: as `sha256sum` does, its line begins with a backslash, and line
    feeds and backslashes in it are written \\n and \\\\. Raises UnicodeEncodeError for a name that no file can have.
    """
    lines = sorted(f"{digest}  {name}\n" if "\n" not in name else _escaped(digest, name) for name, digest in files.items())
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _escaped(digest: str, name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n")
    return f"\\{digest}  {escaped}\n"
