"""Which tensors of a base are quantised, and how the gate reads them; what it cannot read is named."""

from collections.abc import Set
from dataclasses import dataclass, field, replace

from certify.encodings.coded import Coded, Shelf, fitted
from certify.encodings.declaration import Declaration, declaration
from certify.errors import NotInterpretedError
from certify.finding import Finding, Outcome
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.dtypes import TARGETS
from certify.inputs.stored import Stored

CODED = ("F8_E4", "F8_E5", "F6", "F4")  # how the dtypes of codes begin; F8_E8M0 is one of scales


@dataclass(frozen=True)
class Quantised:
    """Of one base. unknown: coded weight → why it is not read"""

    unknown: dict[str, str] = field(default_factory=dict)

    def told(self, found: Finding, merged: Checkpoint, touched: Set[str], output_dtype: str) -> Finding:
        """The same, but where an encoding that is not read may explain what is refused: that is named, and neither passed nor refused."""
        name, here = found.subject, merged.tensors.get(found.subject)
        owner = name.rpartition("_scale")[0]
        if found.outcome is not Outcome.FAILED or not {name, owner} & self.unknown.keys():
            return found
        decoded = output_dtype != "same" and (here is None or here.dtype == TARGETS[output_dtype])
        rescaled = found.code == "C3" and owner in touched and not found.figures.get("unreadable")
        if not (decoded or rescaled):
            return found
        why = self.unknown.get(name) or self.unknown[owner]
        return Finding(found.code, name, Outcome.NOT_INTERPRETED, f"{found.sentence}: the base is quantised: {why}", found.figures)


def coded(side: Checkpoint) -> set[str]:
    """The tensors that are codes, by their dtype."""
    return {name for name, tensor in side.tensors.items() if tensor.dtype.startswith(CODED)}


def decoded(base: Checkpoint, merged: Checkpoint) -> tuple[Checkpoint, Checkpoint, Quantised]:
    """Both sides, every quantised weight read as code × scale, as the base declares it: C7 asks whether the merged one says the same."""
    codes = coded(base)
    if not codes:
        return base, merged, Quantised()
    try:
        declared = declaration(base)
    except NotInterpretedError as error:
        return base, merged, Quantised(dict.fromkeys(codes, str(error)))
    ours, unknown = _read(base, codes, declared)
    theirs, _ = _read(merged, coded(merged), declared)
    return _with(base, ours), _with(merged, theirs), Quantised(unknown)


def _read(side: Checkpoint, names: Set[str], declared: Declaration) -> tuple[dict[str, Stored], dict[str, str]]:
    """(name → code × scale, name → why not)."""
    found: dict[str, Stored] = {}
    unknown: dict[str, str] = {}
    shelf = Shelf()
    for name in names:
        weight, scale = side.tensors[name], side.tensors.get(name + declared.scale)
        if scale is None:
            unknown[name] = f"{weight.described()} has no scale {name + declared.scale}"
        elif isinstance(size := fitted(weight, scale, declared), str):
            unknown[name] = size
        else:
            height, width = size
            found[name] = Coded(weight.path, weight.entry, weight.digests, scale=scale, height=height, width=width, shelf=shelf)
    return found, unknown


def _with(side: Checkpoint, read: dict[str, Stored]) -> Checkpoint:
    return replace(side, tensors=side.tensors | read)
