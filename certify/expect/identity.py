"""Whether the base that was given is the one that the adapters were trained on, and who says so."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from certify.inputs.adapter import Adapter

CACHED = "models--"  # how the hub's cache names the folder of a repository: models--owner--name/snapshots/revision


def base_identity(base: Path, adapters: Sequence[Adapter], digest: str | None, proven: bool) -> dict[str, Any]:
    """status, what the adapters state, and the digest if one was asked for.

    proven   the digest that the request states is that of the directory
    claimed  every adapter names a base, and the directory bears that name (and the revision, where both are known)
    unknown  neither; directories are renamed, so that this is told and never a failure
    """
    stated = [str(adapter.config.get("base_model_name_or_path") or "") for adapter in adapters]
    revisions = [str(adapter.config.get("revision") or "") for adapter in adapters]
    claimed = bool(stated) and all(_names(base, name, revision) for name, revision in zip(stated, revisions, strict=True))
    return {
        "status": "proven" if proven else "claimed" if claimed else "unknown",
        "stated": stated,
        "revision": revisions,
        "digest": digest,
    }


def _names(base: Path, stated: str, revision: str) -> bool:
    """Whether a directory bears the name that an adapter states: the same path, the same last part, or the hub's cache of it."""
    parts = base.resolve().parts
    folder = next((part for part in reversed(parts) if part.startswith(CACHED)), None)
    if folder is not None and folder.removeprefix(CACHED).replace("--", "/") == stated:
        return not revision or revision == parts[-1] or len(revision) != len(parts[-1])  # a branch's name says nothing about a commit
    name = PurePosixPath(stated.replace("\\", "/")).name
    return bool(name) and name == parts[-1]
