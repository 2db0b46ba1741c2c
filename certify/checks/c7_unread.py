"""C7 of what transformers passes over in config.json: keys that it drops as it loads, which other loaders and versions obey."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import transformers

from certify.expect.meaning import differences
from certify.expect.skeleton import quiet

Path = tuple[str, ...]  # the keys that lead to a value
AUTHOR = "name_or_path"  # says where the file came from


def unread_problems(found: dict[str, Any], expected: dict[str, Any], meaning: dict[str, Any]) -> list[str]:
    """One sentence for each key that the merged file states otherwise than the base's, and that the loaded configuration does not show.

    found, expected  the merged and the base's config.json, as they stand on disk
    meaning          the merged one as transformers loads it; a key that its class reads under another name is compared there
    """
    told = []
    for path in _unshown(found, meaning):
        lines = differences(_at(found, path), _at(expected, path), ".".join(path))
        if lines and not _harmless(path[-1], _at(found, path)) and not _read(found, path):
            told += lines
    return told


def _unshown(found: dict[str, Any], meaning: dict[str, Any], path: Path = ()) -> Iterator[Path]:
    for key, value in found.items():
        if key not in meaning and value is not None:
            yield (*path, key)
        elif isinstance(value, dict) and isinstance(meaning.get(key), dict) and "model_type" in meaning[key]:
            yield from _unshown(value, meaning[key], (*path, key))


def _harmless(key: str, value: Any) -> bool:
    """Generation's own default, which transformers 4 wrote into every section; or a note on where the file came from."""
    defaults = transformers.GenerationConfig._get_default_generation_params()
    return key == AUTHOR or (key in defaults and not differences(value, defaults[key]))


def _read(config: dict[str, Any], path: Path) -> bool:
    """Whether the class makes something of a key: another value in its place makes another configuration, or none."""
    changed = copy.deepcopy(config)
    _at(changed, path[:-1])[path[-1]] = _another(_at(config, path))
    return _loaded(changed) != _loaded(config)


def _loaded(config: dict[str, Any]) -> str | None:
    try:
        with quiet():
            return json.dumps(transformers.AutoConfig.for_model(**copy.deepcopy(config)).to_dict(), default=str)
    except Exception:  # wrong values raise whatever the class happens to raise
        return None


def _another(value: Any) -> Any:
    """A value of the same type that nobody would state."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 12_345
    return f"{value}?" if isinstance(value, str) else type(value)()


def _at(config: Any, path: Path) -> Any:
    """The value at the end of a path; None where there is none."""
    for key in path:
        config = config.get(key) if isinstance(config, dict) else None
    return config
