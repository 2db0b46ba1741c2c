"""C2: every tensor of the base index is there, and nothing else; with its shape and the declared dtype."""

from certify.finding import Finding, Outcome
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.dtypes import FLOATS, TARGETS

CODE = "C2"
TITLE = "every tensor of the base is there, with its shape and dtype"


def completeness(subject: str, base: Checkpoint, merged: Checkpoint, dtype: str | None) -> Finding:
    """One key of (base index ∪ merged). `dtype`: what it must be stored as; None where the base itself cannot be read."""
    here, there = merged.tensors.get(subject), base.tensors.get(subject)
    if there is None and subject not in base.weight_map:
        size = here.described() if here else ""
        return Finding(CODE, subject, Outcome.FAILED, f"{size} is not a tensor of the base", {"problem": "extra"})
    if here is None:
        stated = f"; its index names {merged.weight_map[subject]}" if subject in merged.weight_map else ""
        sentence = f"missing{stated}; the base has {there.described() if there else 'it in its index'}"
        return Finding(CODE, subject, Outcome.FAILED, sentence, {"problem": "missing"})
    if there is None or dtype is None:
        return Finding(CODE, subject, Outcome.NOT_INTERPRETED, "the base's index names this tensor, but its files do not hold it")
    if here.shape != there.shape:
        return Finding(CODE, subject, Outcome.FAILED, f"shape {here.shape}, the base has {there.shape}", {"problem": "shape"})
    if here.dtype != dtype:
        sentence = f"stored as {here.dtype}; {dtype} was expected (the base has {there.dtype})"
        return Finding(CODE, subject, Outcome.FAILED, sentence, {"problem": "dtype"})
    return Finding(CODE, subject, Outcome.PASSED)


def main_dtype(base: Checkpoint) -> str | None:
    """The one of BF16, F16, F32 that holds the most elements of the base; None if it has no such tensor."""
    held = dict.fromkeys(FLOATS, 0)
    for tensor in base.tensors.values():
        if tensor.dtype in held:
            held[tensor.dtype] += tensor.entry.elements
    most = max(held, key=lambda name: held[name])
    return most if held[most] else None


def expected_dtype(stored: str, main: str | None, output_dtype: str) -> str:
    """What a base tensor becomes: tensors of the main dtype are converted to the declared one, all others are carried as they are."""
    return stored if output_dtype == "same" or stored != main else TARGETS[output_dtype]
