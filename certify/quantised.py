"""Which tensors of a base are quantised, and what a merge may do to them that this version cannot judge: it does not decode them yet."""

from collections.abc import Set

from certify.finding import Finding, Outcome
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.dtypes import TARGETS

CODED = ("F8", "F6", "F4")  # how the dtypes of codes begin
SCALE = "_scale"  # what follows a weight's name in that of its scale: `_scale`, `_scale_inv`


class Quantised:
    """The coded weights of one base, and their scales: scale → weight."""

    def __init__(self, base: Checkpoint) -> None:
        self.weights = frozenset(name for name, tensor in base.tensors.items() if tensor.dtype.startswith(CODED))
        owners = {name: name.rpartition(SCALE)[0] for name in base.tensors if SCALE in name}
        self.scales = {name: weight for name, weight in owners.items() if weight in self.weights}

    def told(self, found: Finding, merged: Checkpoint, touched: Set[str], output_dtype: str) -> Finding:
        """The same, but where the encoding may explain what is refused: that is named, and neither passed nor refused.

        A decoded checkpoint has no scales, and its weights are of the declared dtype; a merged weight may need another scale. Whatever
        else is wrong with a quantised tensor is wrong in any encoding.
        """
        name, here = found.subject, merged.tensors.get(found.subject)
        decoded = output_dtype != "same" and (
            (name in self.scales and here is None) or (name in self.weights and here is not None and here.dtype == TARGETS[output_dtype])
        )
        rescaled = found.code == "C3" and self.scales.get(name) in touched and not found.figures.get("unreadable")
        if found.outcome is not Outcome.FAILED or not (decoded or rescaled):
            return found
        why = f"{found.sentence}: the base is quantised, and this version does not decode it"
        return Finding(found.code, name, Outcome.NOT_INTERPRETED, why, found.figures)
