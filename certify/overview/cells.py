"""Layer × kind of module: how many tensors, what became of them, and which one is worst."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from certify.finding import Finding, Outcome
from certify.overview.names import Place, place

KINDS, LAYERS = 120, 300  # rows and columns that are told apart; a hostile checkpoint may have as many as it has tensors
STACKS = 8


@dataclass
class Cell:
    """The tensors of one kind in one layer.

    failed, open    tensors with a failed check; with something that could not be interpreted, and nothing worse
    ratio           the largest error against the bound, of which tensor       retention  the least, of which tensor
    """

    tensors: set[str] = field(default_factory=set)
    merged: int = 0
    missing: int = 0
    extra: int = 0
    failed: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)
    accepted: int = 0
    ratio: tuple[float, str] | None = None
    retention: tuple[float, str] | None = None

    def take(self, finding: Finding) -> None:
        """One finding about one of the tensors."""
        name, figures = finding.subject, finding.figures
        self.tensors.add(name)
        if finding.outcome is Outcome.FAILED:
            self.failed.add(name)
        elif finding.outcome is Outcome.NOT_INTERPRETED:
            self.open.add(name)
        if finding.code == "C2":
            self.missing += figures.get("problem") == "missing"
            self.extra += figures.get("problem") == "extra"
        if finding.code == "C4":
            self.merged += 1
            ratio, kept = figures.get("ratio"), figures.get("retention")
            if isinstance(ratio, float) and (self.ratio is None or ratio > self.ratio[0]):
                self.ratio = ratio, name
            if isinstance(kept, float) and (self.retention is None or kept < self.retention[0]):
                self.retention = kept, name

    @property
    def told(self) -> bool:
        """Whether there is more to say than that all tensors are the base's."""
        return bool(self.merged or self.failed or self.open or self.accepted)

    def data(self, layer: int | None) -> dict[str, Any]:
        counts = {"merged": self.merged, "missing": self.missing, "extra": self.extra, "failed": len(self.failed)}
        counts |= {"open": len(self.open - self.failed), "accepted": self.accepted}
        told: dict[str, Any] = {"layer": layer, "tensors": len(self.tensors)} | {name: n for name, n in counts.items() if n}
        for name, worst in (("ratio", self.ratio), ("retention", self.retention)):
            if worst:
                told |= {name: worst[0], f"{name}_at": worst[1]}
        if wrong := sorted(self.failed or self.open):
            told["wrong"] = wrong[0]
        return told


def stacks(findings: Iterable[Finding], accepted: Collection[str]) -> list[dict[str, Any]]:
    """Stacks of layers, the largest first; what lies outside the layers is one more, with an empty name.

    A kind whose tensors are all the base's, bit for bit, is counted; others have a cell for each layer. What is not shown is counted.
    """
    maps: dict[str, dict[str, dict[int | None, Cell]]] = {}

    def cell(name: str) -> Cell:
        where: Place = place(name)
        return maps.setdefault(where.stack, {}).setdefault(where.kind, {}).setdefault(where.layer, Cell())

    tensors, findings = set(accepted), [*findings]
    tensors.update(finding.subject for finding in findings if finding.code == "C2")
    for finding in findings:
        if finding.subject in tensors:
            cell(finding.subject).take(finding)
    for name in accepted:
        if place(name).layer is not None:
            cell(name).tensors.add(name)
            cell(name).accepted += 1
    largest = sorted(maps.items(), key=lambda entry: (-sum(map(len, entry[1].values())), entry[0]))
    return [_stack(name, kinds) for name, kinds in largest[:STACKS]]


def _stack(name: str, kinds: dict[str, dict[int | None, Cell]]) -> dict[str, Any]:
    told = {kind: cells for kind, cells in kinds.items() if any(cell.told for cell in cells.values())}
    first = sorted(told, key=lambda kind: (not any(cell.failed or cell.open for cell in told[kind].values()), kind))[:KINDS]
    layers = sorted({layer for kind in first for layer in kinds[kind]}, key=lambda layer: -1 if layer is None else layer)
    rows = [_row(kind, kinds[kind], layers[:LAYERS]) for kind in sorted(first)]
    calm = [kind for kind in kinds if kind not in told]
    return {
        "name": name,
        "layers": layers[:LAYERS],
        "layers_total": len({layer for cells in kinds.values() for layer in cells}),
        "kinds": rows,
        "kinds_total": len(told),
        "untouched": [{"name": kind, "tensors": _count(kinds[kind].values())} for kind in sorted(calm)[:KINDS]],
        "untouched_total": len(calm),
    }


def _row(kind: str, cells: dict[int | None, Cell], layers: Sequence[int | None]) -> dict[str, Any]:
    return {"name": kind, "tensors": _count(cells.values()), "cells": [cells[layer].data(layer) for layer in layers if layer in cells]}


def _count(cells: Iterable[Cell]) -> int:
    return sum(len(cell.tensors) for cell in cells)
