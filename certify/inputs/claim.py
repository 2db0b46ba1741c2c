"""Where the merged directory's manifest says that its adapters lie. It may say where; it never says what is right."""

from dataclasses import dataclass
from pathlib import Path

from certify.errors import DamagedError
from certify.inputs.adapter import CONFIG
from certify.inputs.folder import folder_digest
from certify.inputs.strict_json import read_object

MANIFEST = "merge-manifest.json"


@dataclass(frozen=True, slots=True)
class Claim:
    """The located adapters, or the reason why there are none."""

    adapters: tuple[Path, ...] = ()
    reason: str = ""


def located(merged: Path) -> Claim:
    """The adapter directories that the manifest names, accepted only if all of them exist, lie outside and have the stated digest."""
    if not (merged / MANIFEST).is_file():
        return Claim(reason="no adapter was given, and the merged directory has no manifest that names one")
    try:
        stated = read_object(merged / MANIFEST).get("adapters")
    except DamagedError as error:
        return Claim(reason=f"no adapter was given, and the manifest cannot be read: {error}")
    if not isinstance(stated, list) or not stated:
        return Claim(reason="no adapter was given, and the manifest names none")
    found = []
    for entry in stated:
        if (reason := _refusal(merged, entry)) is not None:
            return Claim(reason=f"no adapter was given, and the manifest's cannot be used: {reason}")
        found.append((merged / entry["path"]).resolve())
    return Claim(tuple(found))


def named(merged: Path) -> tuple[Path, ...]:
    """The adapters that the manifest names, unexamined: known before anything large is read."""
    try:
        stated = read_object(merged / MANIFEST).get("adapters")
    except DamagedError:
        return ()
    entries = [entry for entry in stated if isinstance(entry, dict)] if isinstance(stated, list) else []
    paths = [merged / path for entry in entries if isinstance(path := entry.get("path"), str) and "\0" not in path]
    return tuple(path.resolve() for path in paths if (path / CONFIG).is_file())


def _refusal(merged: Path, entry: object) -> str | None:
    match entry:
        case {"path": str(path), "digest": str(digest), "weight": 1 | 1.0} if "\0" not in path:
            pass
        case {"weight": weight} if weight != 1:
            return f"it claims the weight {weight!r}; pass --adapter and --weight yourself"
        case _:
            return "its entry lacks path or digest"
    directory = (merged / path).resolve()
    if directory.is_relative_to(merged.resolve()) or merged.resolve().is_relative_to(directory):
        return f"{path} does not lie outside the merged directory"
    if not (directory / CONFIG).is_file():
        return f"{path} holds no {CONFIG}"
    if folder_digest(directory) != digest:
        return f"{path} is not the adapter that was merged (its digest differs)"
    return None
