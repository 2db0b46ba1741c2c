"""A head that the base has not: the adapter brings it, and the configuration must name its class and labels. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from merge.errors import NOTHING_WRITTEN, AdapterError, listing
from merge.nametable import NameTable
from merge.placement import Placement


def refuse_half(table: NameTable, placement: Placement) -> None:
    """Raises AdapterError if the class that the adapter was trained on has weights that nobody brings: they were random, and are lost."""
    lost = sorted(name for name in table.absent if name not in placement.placed and name not in table.tied)
    if lost:
        raise AdapterError(
            f"{table.architecture}: {len(lost)} weights are neither in the base nor in the adapter\n{listing(lost)}\n"
            f"Train with them in modules_to_save. {NOTHING_WRITTEN}"
        )


def edits(placement: Placement, new: Iterable[str], begun: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those that the placement asks for, and the labels of a new head."""
    found = dict(placement.edits)
    heads = [placement.placed[name].shape[0] for name in new if placement.placed[name].read.place == "adapter"]
    if begun and "architectures" in begun and heads:
        labels = {str(number): f"LABEL_{number}" for number in range(max(heads))}
        found |= {"id2label": labels, "label2id": {label: int(number) for number, label in labels.items()}}
    return found
