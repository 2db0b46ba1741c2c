"""C3: a tensor that no adapter touches is the base's, byte for byte; under a declared dtype, its value rounded once."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from certify.encodings.coded import Coded
from certify.errors import DamagedError
from certify.finding import Finding, Outcome
from certify.grid import half_ulp
from certify.inputs.dtypes import FLOATS
from certify.inputs.stored import Stored

CODE = "C3"
TITLE = "untouched tensors are the base's, bit for bit"
STEP = 1 << 19  # elements per block


def untouched(subject: str, base: Stored, merged: Stored) -> Finding:
    """One tensor of the same shape on both sides. FAILED where a byte differs, or a converted value is not the once-rounded one."""
    try:
        if base.dtype == merged.dtype:
            differing, first, what = *_bytes(base, merged), "bytes"
        elif base.numbers and merged.dtype in FLOATS:
            differing, first, what = *_converted(base, merged), "elements"
        else:
            return Finding(CODE, subject, Outcome.NOT_INTERPRETED, f"{base.dtype} stored as {merged.dtype} is not interpreted")
    except DamagedError as error:
        return Finding(CODE, subject, Outcome.FAILED, str(error), {"unreadable": True})
    if not differing:
        return Finding(CODE, subject, Outcome.PASSED)
    total = merged.entry.stop - merged.entry.start if what == "bytes" else merged.entry.elements
    sentence = f"{differing:,} of {total:,} {what} differ from the base, the first at {what[:-1]} {first:,}; no adapter touches this tensor"
    return Finding(CODE, subject, Outcome.FAILED, sentence, {"differing": differing, "total": total, "first": first, "unit": what})


def _bytes(base: Stored, merged: Stored) -> tuple[int, int]:
    """(how many bytes differ, the first)."""
    differing = offset = 0
    first = -1
    for ours, theirs in zip(base.raw(), merged.raw(), strict=True):
        if ours != theirs:
            unequal = np.frombuffer(ours, np.uint8) != np.frombuffer(theirs, np.uint8)
            first = offset + int(unequal.argmax()) if first < 0 else first
            differing += int(unequal.sum())
        offset += len(ours)
    return differing, first


def _converted(base: Stored, merged: Stored) -> tuple[int, int]:
    """(how many elements are not the once-rounded base value, the first); a finite value that became infinite is one of them."""
    differing = offset = 0
    first = -1
    for (ours, exact), theirs in zip(_values(base), merged.elements(STEP), strict=True):
        expected = ours.float().to(FLOATS[merged.dtype])
        unequal = (expected != theirs) & ~(torch.isnan(expected) & torch.isnan(theirs))
        unequal &= ~((theirs.double() - exact).abs() < half_ulp(exact, FLOATS[merged.dtype])) if exact is not None else True
        unequal |= torch.isinf(theirs) & torch.isfinite(ours)
        unequal |= torch.signbit(expected) != torch.signbit(theirs)
        if bool(unequal.any()):
            first = offset + int(unequal.int().argmax()) if first < 0 else first
            differing += int(unequal.sum())
        offset += ours.numel()
    return differing, first


def _values(base: Stored) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(the numbers, code × scale exactly in float64 where that is what they are).

    A merge may round that once, or round the float32 product: where this falls on the middle of two values they differ.
    """
    if not isinstance(base, Coded):
        yield from ((ours, None) for ours in base.elements(STEP))
        return
    for codes, scale in base.factors(min(STEP, base.entry.elements - first) for first in range(0, base.entry.elements, STEP)):
        yield codes * scale, codes.double() * scale.double()
