"""One field of `adapter_config.json` → its value. JSON knows more than PEFT means: what PEFT would read in another way, or not at all, is
refused with a sentence, never converted. Every reader raises ValueError or re.error.
"""

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

LAYERS = 10_000  # more than any model has


def number(value: object) -> float:
    """A finite number: Python's JSON also reads NaN, which some kernels take for 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a finite number was expected, found {value!r}")
    return float(value)


def rank(value: object) -> int:
    """A whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"a rank of at least 1 was expected, found {value!r}")
    return value


def switch(value: object) -> bool:
    """True or false; null is false."""
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"true or false was expected, found {value!r}")
    return bool(value)


def word(value: object) -> str | None:
    """A text, or null."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"a word was expected, found {value!r}")
    return value


def regex(pattern: str) -> str:
    """A pattern for the end of a path; a flag such as (?i) can stand at the beginning of a whole one only."""
    re.compile(rf"(.*\.)?({pattern})$")
    return pattern


def names(value: object) -> tuple[str, ...] | str:
    """Names, or one pattern for whole paths."""
    if value is None or isinstance(value, str):
        re.compile(value or "")
        return value or ()
    return _texts(value, "a pattern or a list of names")


def only_names(value: object, field: str) -> tuple[str, ...]:
    """Names. PEFT takes a text here for a list of its letters."""
    return () if value is None else _texts(value, f"{field}: a list of names")


def layers_pattern(value: object) -> tuple[str, ...]:
    """Names of stacks of layers: a list, or one."""
    stacks = (value,) if isinstance(value, str) and value else () if not value else _texts(value, "layers_pattern: a list of names")
    return tuple(regex(name) for name in stacks)


def layers(value: object) -> tuple[int, ...] | None:
    """Numbers of layers; None: of all. PEFT compares them with whole numbers, so that a text names no layer."""
    stated = value if isinstance(value, list) else () if value is None else [value]
    if not all(type(layer) is int and layer >= 0 for layer in stated):
        raise ValueError(f"layers_to_transform: numbers of layers were expected, found {value!r}")
    return tuple(stated) or None


def tokens(value: object) -> Mapping[str, tuple[int, ...]]:
    """Rows by module name; a bare list belongs to the input embeddings, whatever they are called."""
    named: Mapping[str, Any] = value if isinstance(value, dict) else {"": value} if value else {}
    for rows in named.values():
        if not isinstance(rows, list) or not all(type(row) is int for row in rows):
            raise ValueError(f"trainable_token_indices: lists of whole numbers were expected, found {rows!r}")
        if len(set(rows)) < len(rows) or min(rows, default=-1) < 0:
            raise ValueError("trainable_token_indices names no row, a row twice, or a negative one")
    return {name: tuple(rows) for name, rows in named.items()}


def replication(value: Any) -> tuple[int, ...] | None:
    """[[0, 2], [1, 3]] → 0, 1, 1, 2: half-open ranges, one after the other."""
    ranges = [range(start, stop) for start, stop in value or ()]
    if sum(map(len, ranges)) > LAYERS:
        raise ValueError(f"layer_replication asks for more than {LAYERS:,} layers")
    return tuple(itertools.chain(*ranges)) if value else None


def version(value: object) -> tuple[int, ...] | None:
    """The leading numbers of "0.19.1.dev0@…"."""
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", value) if isinstance(value, str) else None
    return tuple(int(number) for number in found.groups()) if found else None


def _texts(value: object, wanted: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{wanted} was expected, found {value!r}")
    return tuple(value)
