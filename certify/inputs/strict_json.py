"""JSON from a file that nobody vouches for."""

import json
from pathlib import Path
from typing import Any

from certify.errors import DamagedError

JSON_MAX = 256 << 20  # bytes; DeepSeek-V3's index has 4.3 MB


def parse_object(raw: bytes) -> tuple[dict[str, Any], list[str]]:
    """The JSON object in `raw`, and every key that occurs twice in one object. Raises DamagedError if it is no JSON object."""
    repeated: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                repeated.append(key)
            found[key] = value
        return found

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"holds a JSON {type(value).__name__}, not an object")
    return value, repeated


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file. Raises DamagedError, naming the file, for anything else, a repeated key included."""
    try:
        if path.stat().st_size > JSON_MAX:
            raise DamagedError(f"larger than {JSON_MAX >> 20} MiB")
        value, repeated = parse_object(path.read_bytes())
    except (OSError, DamagedError) as error:
        raise DamagedError(f"{path.name}: {error}") from error
    if repeated:
        raise DamagedError(f"{path.name}: the key {repeated[0]!r} occurs twice")
    return value
