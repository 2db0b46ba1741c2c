"""The support table: which cells of family × feature the tests merge. Written by the tests' own matrix, read by `merge support`."""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any


def read() -> dict[str, Any]:
    """test: the pattern of every cell's test id · features, in order · cells: family → feature → "merged" or "refused: reason"."""
    found: dict[str, Any] = json.loads(files("merge.adapters").joinpath("support.json").read_text())
    return found


def text(table: Mapping[str, Any], refused: Mapping[str, str]) -> str:
    """For a person: one line per feature with the families that it was merged in, then what is refused everywhere."""
    families = table["cells"]
    lines = []
    for feature in table["features"]:
        merged = [family for family, cells in families.items() if cells.get(feature) == "merged"]
        lines.append(f"{feature:18s} {len(merged):2d} families: {', '.join(merged)}")
        lines += [f"{'':18s} {family}: {cells[feature]}" for family, cells in families.items() if feature in cells and family not in merged]
    count = sum(value == "merged" for cells in families.values() for value in cells.values())
    lines += [f"{count} cells of {len(families)} families are merged, each shown by {table['test']}", "", "Refused, whatever the family:"]
    return "\n".join([*lines, *(f"  {name}: {reason}" for name, reason in refused.items())])


def markdown(table: Mapping[str, Any]) -> str:
    """For the README: one row per feature."""
    families, few = table["cells"], 12
    lines = ["| feature | families | refused |", "|---|---|---|"]
    for feature in table["features"]:
        merged = [family for family, cells in families.items() if cells.get(feature) == "merged"]
        named = f"all {len(merged)}" if len(merged) == len(families) else ", ".join(merged) if len(merged) <= few else f"{len(merged)}"
        refused = [f"{name}: {cells[feature].removeprefix('refused: ')}" for name, cells in families.items() if feature in cells]
        lines.append(f"| `{feature}` | {named} | {'; '.join(line for line in refused if not line.endswith(': merged'))} |")
    return "\n".join(lines)
