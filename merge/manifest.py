"""merge-manifest.json, the last file written: the checkpoint is complete if and only if it exists.

It holds what the inputs determine and nothing else: no dates, no absolute paths, no figures of the run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import xxhash

from merge.operation import ShardRecord

MANIFEST = "merge-manifest.json"
FORMAT = "mergegate/merge-manifest/1"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was merged into what. `out` is where it lies; every other field is part of the file.

    adapters    path relative to OUT, folder digest, sha256 per file, weight
    side_files  file → "base", "adapter" or "written"
    stale       weight files of the base that its index does not name: not carried
    fidelity    merged tensor → figures of merge/fidelity.py; "" → those of the whole adapter
    """

    out: Path
    engine: Mapping[str, str]
    plan: str
    base: Mapping[str, str]
    adapters: tuple[Mapping[str, Any], ...]
    options: Mapping[str, Any]
    tensors: Mapping[str, int]
    adapter_tensors: int
    shards: Mapping[str, Mapping[str, Any]]
    side_files: Mapping[str, str]
    stale: tuple[str, ...]
    fidelity: Mapping[str, Mapping[str, float]]

    def to_bytes(self) -> bytes:
        """The file: JSON with sorted keys."""
        data = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "out"}
        return (json.dumps({"format": FORMAT, **data}, sort_keys=True, indent=2) + "\n").encode()


def read(out: Path) -> Manifest | None:
    """The manifest of a finished output, or None."""
    try:
        data = json.loads((out / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        return None
    try:
        return Manifest(out=out, **{**data, "adapters": tuple(data["adapters"]), "stale": tuple(data["stale"])})
    except (KeyError, TypeError):
        return None


def shard_entry(record: ShardRecord) -> dict[str, Any]:
    """One shard's line: its size, how many blocks it was written in, and one digest over their checksums."""
    digest = xxhash.xxh3_128_hexdigest("".join(record.blocks).encode())
    return {"size": record.size, "blocks": len(record.blocks), "xxh3_128": digest}
