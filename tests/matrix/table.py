"""Every cell of family × feature: merged, refused for a reason, or without meaning for the family."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merge.adapters.table import markdown
from tests.matrix.cell import PRODUCERS
from tests.matrix.families import FAMILIES
from tests.matrix.features import FEATURES

SUPPORT = Path(__file__).parents[2] / "merge" / "adapters" / "support.json"
README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- tests.matrix: begin -->\n", "\n<!-- tests.matrix: end -->"
TEST = "tests/test_merge/test_matrix.py::test_cell[{family}-{feature}]"
NEEDS = {"head_of_task": "head", "disk_names": "disk", "resized": "embedding"}  # feature → what a family must have for it
REFUSED = {  # the sentence that the refusal must hold
    ("bert", "two_adapters"): "which a --weight of 0.7 cannot scale",
    ("t5", "embedding"): "tied embeddings cannot be kept apart",
    ("t5", "saved_embedding"): "tied embeddings cannot be kept apart",
    ("gpt2", "saved_alike"): "ensure_weight_tying promises a change for each of the tied weights",  # PEFT does not tie this one
    ("t5", "embedding_dora"): "tied embeddings cannot be kept apart",
}
ALL = (*FEATURES, *PRODUCERS)


def cells() -> Iterator[tuple[str, str, str | None]]:
    """(family, feature, None where it is merged or the sentence of its refusal)."""
    for name, family in FAMILIES.items():
        for feature in ALL:
            made = FEATURES[feature](family) is not None if feature in FEATURES else bool(getattr(family, NEEDS.get(feature, "build")))
            if made:
                yield name, feature, REFUSED.get((name, feature))


def chosen() -> list[tuple[str, str, str | None]]:
    """Few of them, such that every family and every feature is there: each feature on the family that has met the fewest so far."""
    rest = list(cells())
    met = dict.fromkeys(FAMILIES, 0)
    found = []
    for feature in sorted(ALL, key=lambda f: sum(cell[1] == f for cell in rest)):
        family, _, refused = min((entry for entry in rest if entry[1] == feature), key=lambda entry: met[entry[0]])
        met[family] += 1
        found.append((family, feature, refused))
    return found + [next(cell for cell in rest if cell[0] == family) for family, count in met.items() if not count]


def as_json() -> dict[str, Any]:
    """What `python -m merge support` reads."""
    table: dict[str, dict[str, str]] = {name: {} for name in FAMILIES}
    for family, feature, refused in cells():
        table[family][feature] = f"refused: {refused}" if refused else "merged"
    return {"test": TEST, "features": list(ALL), "cells": table}


def text() -> str:
    """The file."""
    return json.dumps(as_json(), indent=1) + "\n"


def readme() -> str:
    """README.md with the table that the matrix shows."""
    before, _, rest = README.read_text().partition(BEGIN)
    return before + BEGIN + markdown(as_json()) + END + rest.partition(END)[2]
