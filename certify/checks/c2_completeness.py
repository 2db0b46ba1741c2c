"""C2: every tensor of the base index is there, and nothing else; with its shape and the declared dtype."""

from dataclasses import dataclass

from certify.encodings.coded import companions
from certify.finding import Figure, Finding, Outcome
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.dtypes import FLOATS, TARGETS

CODE = "C2"
TITLE = "every tensor of the base is there, with its shape and dtype"


@dataclass(frozen=True, slots=True)
class Demand:
    """What a tensor must be: its shape, and one of these dtypes."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]


def completeness(subject: str, base: Checkpoint, merged: Checkpoint, demand: Demand | None, *, gone: str = "") -> Finding:
    """One key of base ∪ merged ∪ what the adapters add.

    demand: None where the base has no such tensor, or cannot be read      gone: why it must not be there any more
    """
    here, there = merged.tensors.get(subject), base.tensors.get(subject)
    stated = f"; its index names {merged.weight_map[subject]}" if subject in merged.weight_map else ""
    if gone and here is None:
        return Finding(CODE, subject, Outcome.PASSED, figures={"gone": True})
    if gone or (demand is None and there is None and subject not in base.weight_map):
        size = here.described() if here else ""
        figures: dict[str, Figure] = {"problem": "extra"} | ({"left_over": True} if gone else {})
        return Finding(CODE, subject, Outcome.FAILED, f"{size} {gone or 'is not a tensor of the base'}", figures)
    if here is None:
        has = there.described() if there else f"a tensor {demand.shape} was expected" if demand else "it in its index"
        sentence = f"missing{stated}; " + (f"the base has {has}" if there or demand is None else has)
        return Finding(CODE, subject, Outcome.FAILED, sentence, {"problem": "missing"})
    if demand is None:
        return Finding(CODE, subject, Outcome.NOT_INTERPRETED, "the base's index names this tensor, but its files do not hold it")
    if here.shape != demand.shape:
        whose = "the base has" if there and there.shape == demand.shape else "the adapter makes it"
        return Finding(CODE, subject, Outcome.FAILED, f"shape {here.shape}, {whose} {demand.shape}", {"problem": "shape"})
    if here.dtype not in demand.dtypes:
        known = f" (the base has {there.dtype})" if there else ""
        sentence = f"stored as {here.dtype}; {' or '.join(demand.dtypes)} was expected{known}"
        return Finding(CODE, subject, Outcome.FAILED, sentence, {"problem": "dtype"})
    return Finding(CODE, subject, Outcome.PASSED)


def main_dtype(base: Checkpoint) -> str | None:
    """The one of BF16, F16, F32 that holds the most elements of the base, scales aside; None if it has no such tensor."""
    held, scales = dict.fromkeys(FLOATS, 0), companions(base.tensors)
    for name, tensor in base.tensors.items():
        if tensor.dtype in held and name not in scales:
            held[tensor.dtype] += tensor.entry.elements
    most = max(held, key=lambda name: held[name])
    return most if held[most] else None


def expected_dtype(stored: str, main: str | None, output_dtype: str, *, decoded: bool = False) -> str:
    """What a base tensor becomes: what is of the main dtype, or quantised, is converted to the declared one, all others are carried."""
    return stored if output_dtype == "same" or (stored != main and not decoded) else TARGETS[output_dtype]
