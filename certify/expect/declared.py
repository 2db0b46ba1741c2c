"""Differences between base and merged that the adapters themselves declare: other layers, rows, heads, and no tie any more."""

from dataclasses import dataclass, field
from typing import Any

Changes = dict[str, Any]


@dataclass(frozen=True)
class Declared:
    """config: field of config.json → its value in the merged one; the whole of it, at whatever depth the field stands.

    labels: rows of a new head, which the configuration must count; 0 where there is none
    reasons: in plain words, why the model that the adapter was trained on is not the base's
    """

    config: Changes = field(default_factory=dict)
    labels: int = 0
    reasons: tuple[str, ...] = ()

    @property
    def model(self) -> Changes:
        """What the configuration must be told before the model is built."""
        return self.config | ({"num_labels": self.labels} if self.labels else {})
