"""C7 of what transformers passes over in config.json: keys that it drops as it loads, which other loaders and versions obey."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import transformers

from certify.expect.meaning import Meaning, differences
from certify.expect.skeleton import quiet

Keys = tuple[str, ...]  # the keys that lead to a value
AUTHOR = "name_or_path"  # says where the file came from
ROPE = "rope_parameters"  # where transformers 5 keeps what version 4 wrote as rope_theta and rope_scaling


def unread_problems(found: Meaning, expected: Meaning, ours: Meaning, theirs: Meaning) -> list[str]:
    """One sentence for each key that the merged file states otherwise than the base's, and that the loaded configuration does not show.

    found, expected  the merged and the base's config.json, as they stand on disk
    ours, theirs     both as transformers loads them; a key that the class reads under another name is compared there, and not here
    """
    told = []
    for path in _unshown(found, ours):
        value = _at(found, path)
        lines = differences(value, _at(expected, path), ".".join(path))
        rope = _at(theirs, (*path[:-1], ROPE))
        if lines and not _harmless(path[-1], value) and not _repeats(path[-1], value, rope) and not _read(found, path):
            told += lines
    return told


def _unshown(found: Meaning, meaning: Meaning, path: Keys = ()) -> Iterator[Keys]:
    for key, value in found.items():
        if key not in meaning and value is not None:
            yield (*path, key)
        elif isinstance(value, dict) and isinstance(meaning.get(key), dict) and "model_type" in meaning[key]:
            yield from _unshown(value, meaning[key], (*path, key))


def _harmless(key: str, value: Any) -> bool:
    """Generation's own default, which transformers 4 wrote into every section; or a note on where the file came from."""
    defaults = transformers.GenerationConfig._get_default_generation_params()
    return key == AUTHOR or (key in defaults and not differences(value, defaults[key]))


def _repeats(key: str, value: Any, rope: Any) -> bool:
    """Whether it is what the base means by its rotary embedding, in version 4's spelling."""
    stated = value if isinstance(value, dict) else {key: value}
    return isinstance(rope, dict) and bool(stated) and all(not differences(held, rope.get(name)) for name, held in stated.items())


def _read(config: Meaning, path: Keys) -> bool:
    """Whether the class makes something of a key: another value in its place makes another configuration, or none."""
    changed = copy.deepcopy(config)
    _at(changed, path[:-1])[path[-1]] = _another(_at(config, path))
    return _loaded(changed) != _loaded(config)


def _loaded(config: Meaning) -> str | None:
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
    if isinstance(value, dict):
        return {key: _another(held) for key, held in value.items()}
    return f"{value}?" if isinstance(value, str) else None


def _at(config: Any, path: Keys) -> Any:
    """The value at the end of a path; None where there is none."""
    for key in path:
        config = config.get(key) if isinstance(config, dict) else None
    return config
