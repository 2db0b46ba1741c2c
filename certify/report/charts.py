"""Where things stand in the page's drawings: coordinates and classes, no markup."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LABEL, INNER, ROW, HEAD = 252, 748, 14, 22  # of a map, in units of its viewBox
WIDEST = 34  # of one cell
NOT_FINITE = 1e29  # C4 counts NaN and infinity as 1e30
RETENTION = (
    (0.25, "r0", "below 0.25"),
    (0.5, "r1", "0.25 … 0.5"),
    (0.75, "r2", "0.5 … 0.75"),
    (0.9, "r3", "0.75 … 0.9"),
    (1.1, "r4", "0.9 … 1.1"),
)
ERROR = ((0.5, "e0", "up to 0.5"), (0.9, "e1", "0.5 … 0.9"), (1 + 1e-9, "e2", "0.9 … 1"), (2.0, "e3", "1 … 2"))
ABOVE = {"retention": ("r5", "above 1.1"), "ratio": ("e4", "above 2, or not finite")}
ABSENT = dict.fromkeys(("merged", "missing", "extra", "failed", "open", "accepted"), 0) | {"ratio": None, "retention": None, "wrong": None}
STATES = {
    "failed": "failed",
    "missing": "missing",
    "open": "not interpreted",
    "accepted": "declared difference",
    "merged": "merged, sound",
    "calm": "the base's, bit for bit",
}


@dataclass(frozen=True)
class Cell:
    """One square. facts: the certificate's cell; state, retention, ratio: classes."""

    id: str
    x: float
    facts: dict[str, Any]
    state: str
    retention: str
    ratio: str


@dataclass(frozen=True)
class Row:
    id: str
    label: str
    tensors: int
    cells: list[Cell]

    @property
    def merged(self) -> bool:
        return any(cell.facts["merged"] for cell in self.cells)


@dataclass(frozen=True)
class Map:
    """A stack of layers, drawn as rows of kinds and columns of layers. ticks: (x of the middle, layer)."""

    name: str
    rows: list[Row]
    width: float
    cell: float
    ticks: list[tuple[float, str]]
    facts: dict[str, Any]
    merged: list[Row] = field(default_factory=list)


def heat_map(stack: dict[str, Any], number: int) -> Map:
    """The drawing of one stack."""
    layers = stack["layers"]
    wide = min(WIDEST, INNER / max(1, len(layers)))
    at = {layer: LABEL + column * wide for column, layer in enumerate(layers)}
    rows = []
    for place, kind in enumerate(stack["kinds"]):
        name = f"k{number}-{place}"
        cells = [_cell(f"{name}-{column}", at[facts["layer"]], facts) for column, facts in enumerate(kind["cells"]) if facts["layer"] in at]
        rows.append(Row(name, kind["name"], kind["tensors"], cells))
    step = max(1, -(-len(layers) // max(1, int(wide * len(layers) // 26))))
    ticks = [(round(at[layer] + wide / 2, 1), "–" if layer is None else str(layer)) for layer in layers[::step]]
    width = max(LABEL + 60, LABEL + wide * len(layers))
    return Map(stack["name"], rows, round(width, 1), round(wide, 2), ticks, stack, [row for row in rows if row.merged])


def _cell(name: str, x: float, stated: dict[str, Any]) -> Cell:
    facts = ABSENT | stated
    state = next((state for state in ("missing", "failed", "open", "accepted", "merged") if facts[state]), "calm")
    if state == "missing" and facts["missing"] < facts["tensors"]:
        state = "failed"
    graded = {kind: grade(facts[kind], kind) for kind in ("retention", "ratio")}
    return Cell(name, round(x, 1), facts, state, graded["retention"], graded["ratio"])


def grade(value: float | None, kind: str) -> str:
    """The class of a figure's colour."""
    if value is None:
        return "none"
    return next((name for edge, name, _ in (RETENTION if kind == "retention" else ERROR) if value <= edge), ABOVE[kind][0])


def legend(kind: str) -> list[tuple[str, str]]:
    """(class, meaning) of each colour."""
    if kind == "state":
        return list(STATES.items())
    return [(name, told) for _, name, told in (RETENTION if kind == "retention" else ERROR)] + [ABOVE[kind]]


@dataclass(frozen=True)
class Bars:
    """A histogram in a box of 300 × 90. bars: (x, y, width, height, class, title); ticks: (x, label)."""

    bars: list[tuple[float, float, float, float, str, str]]
    ticks: list[tuple[float, str]]


def histogram(pairs: Sequence[Sequence[float]], kind: str) -> Bars:
    """Of (place, tensors) pairs: the bar's middle for the retention, its upper edge for the error."""
    held = [pair for pair in pairs if len(pair) == 2]
    most, wide = max((count for _, count in held), default=0), 300 / max(1, len(held))
    bars = []
    for number, (place, count) in enumerate(held):
        if count > 0:
            height = max(1.5, 70 * count / most)
            beyond = kind == "ratio" and place > 1.01
            title = f"{count:,.0f} tensors {'above 1' if beyond else f'near {place:g}' if kind == 'retention' else f'up to {place:g}'}"
            bars.append(
                (round(number * wide + 0.5, 1), round(72 - height, 1), round(wide - 1, 1), round(height, 1), "bad" if beyond else "", title)
            )
    shown = (0.0, 0.25, 0.5, 0.75, 1.0)
    shift = wide / 2 if kind == "retention" else wide
    ticks = [(round(number * wide + shift, 1), f"{place:g}") for number, (place, _) in enumerate(held) if place in shown]
    return Bars(bars, ticks)


@dataclass(frozen=True)
class Curve:
    """Three lines over the decoder layers in a box of 300 × 90, logarithmic. failed: (x, y, unit); low, high: labels of the axis."""

    lines: dict[str, str]
    failed: list[tuple[float, float, str]]
    left: str
    right: str
    low: str
    high: str


def curve(units: Sequence[dict[str, Any]]) -> Curve | None:
    """How far each layer's answer is from the unmerged adapter's; None where no layer was adapted and run.

    Answers that are not finite lie on the upper edge: the axis is that of the others.
    """
    layers = [unit for unit in units if unit["unit"].rpartition(".")[2].isdecimal()]
    shown = [unit for unit in layers if (unit["err_base"] or 0) > 0 or (unit["err_merged"] or 0) > 0]
    held = [value for unit in shown for name in ("err_merged", "err_base", "err_rounding") if (value := unit[name]) and value > 0]
    values = [value for value in held if value < NOT_FINITE] or ([1.0] if held else [])
    if not shown or not values:
        return None
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    high = max(high, low + 1)

    def point(number: int, value: float) -> tuple[float, float]:
        share = (math.log10(min(max(value, 10.0**low), 10.0**high)) - low) / (high - low)
        return round(30 + 266 * number / max(1, len(shown) - 1), 1), round(70 - 66 * share, 1)

    lines = {}
    for name in ("err_base", "err_rounding", "err_merged"):
        points = [point(number, unit[name]) for number, unit in enumerate(shown) if unit[name]]
        lines[name] = " ".join(f"{x},{y}" for x, y in points)
    failed = [(*point(n, unit["err_merged"] or 0), unit["unit"]) for n, unit in enumerate(shown) if unit["outcome"] == "failed"]
    left, right = (unit["unit"].rpartition(".")[2] for unit in (shown[0], shown[-1]))
    return Curve(lines, failed, left, right, _power(low), _power(high))


def _power(of_ten: int) -> str:
    """A label that is short whatever it says."""
    return {-1: "0.1", 0: "1", 1: "10"}.get(of_ten, f"1e{of_ten}")
