"""What one version of a unit answers, and how far two versions are from each other."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from certify.layers.routing import Observed, alike

OUTPUT = "output"
ROUTING, EXPERTS = "routing", "experts"  # the rest of a measure's name is the module's path


@dataclass
class Answer:
    """One run. measures: name → (rows, width) float32: tokens for output and routing, experts for experts."""

    passed_on: Any
    measures: dict[str, Tensor]
    observed: Observed

    @property
    def tokens(self) -> int:
        return len(self.measures[OUTPUT])

    def flips(self, other: "Answer") -> int:
        """How many tokens went to other experts."""
        return int((~alike(self.observed, other.observed, self.tokens)).sum())

    def difference(self, other: "Answer", measure: str) -> Tensor:
        """(rows, width); of the output only tokens that went to the same experts, since the others differ by a whole expert."""
        off = self.measures[measure] - other.measures[measure]
        return off[alike(self.observed, other.observed, self.tokens)] if measure == OUTPUT else off

    def distance(self, other: "Answer", measure: str) -> Tensor:
        """float64: one norm over all tokens, or one per expert. NaN counts as infinitely far."""
        rows = self.difference(other, measure).double().norm(dim=-1)
        if not measure.startswith(EXPERTS):
            rows = rows.norm().reshape(1)
        finite: Tensor = rows.nan_to_num(nan=torch.inf)
        return finite


def first_tensor(output: Any) -> Tensor:
    """What of a module's output is compared: its first tensor of floats."""
    found: Tensor = next(given for given in tree_flatten(output)[0] if isinstance(given, Tensor) and given.is_floating_point())
    return found
