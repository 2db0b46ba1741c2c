"""C4 of the scales beside a quantised weight that an adapter touches: they are the base's, or there is a reason why not.

The elements of a weight are judged on the grid of the scales beside them. A merge that may choose its scales freely may choose its grid,
and on a grid that is coarse enough everything is a right rounding; so a scale is right only if base, adapter and format lead to it:

kept       s, the base's, where the merged values of its block fit: |v| ≤ 464·s, which C4 of the weight asks
doubled    2ᵏ·s, where some |v| > 464·2ᵏ⁻¹·s: the least power of two that makes room. No other number of the block moves
renewed    max|v| / 448, as the format's own recipe makes it (DeepSeek-V3, inference/kernel.py, act_quant; compressed-tensors,
           quantization/utils/helpers.py, calculate_qparams), rounded once to the dtype of the scales; 1 for a block of zeros.
           Where all scales of the base are powers of two ("ue8m0"), their readers count on it: 2^⌈log₂(max|v| / 448)⌉

v is known up to the e of `certify.bounds`; the quotient, or a product with the rounded 1/448, is off by 2u. A renewed scale moves every
number of its block by a rounding; that is the merge tool's choice, and C8 tells what it costs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.bounds import U32
from certify.checks.c4_merged import CODE
from certify.encodings.coded import Coded, scales
from certify.encodings.e4m3 import LARGEST, OVERFLOW
from certify.errors import DamagedError
from certify.expect.expectation import Expectation
from certify.expect.target import Target
from certify.finding import Figure, Finding, Outcome
from certify.grid import Grid
from certify.inputs.dtypes import FLOATS


def scale_tensor(subject: str, expectation: Expectation, base: Coded, merged: Coded, criterion: str) -> Finding:
    """The scales of one touched weight, which are not the base's byte for byte. expectation: of the weight."""
    try:
        ours, theirs = (scales(side.scale).double().view(-1, side.across) for side in (base, merged))
        reach = Reach.of(expectation, base, criterion)
    except DamagedError as error:
        return Finding(CODE, subject, Outcome.FAILED, str(error), {"unreadable": True})
    powers = bool((torch.frexp(ours)[0][ours != 0] == 0.5).all())
    dtype = FLOATS.get(merged.scale.dtype, torch.float32)
    kept, doubled = ours == theirs, reach.doubled(ours, theirs)
    renewed = reach.renewed(theirs, dtype, powers=powers) | ((ours == 0) & reach.renewed(theirs, dtype, powers=not powers))
    wrong = ~(kept | doubled | renewed)
    figures: dict[str, Figure] = {"scales": ours.numel(), "kept": int(kept.sum()), "doubled": int((doubled & ~kept).sum()),
                                  "renewed": int((renewed & ~doubled & ~kept).sum()), "wrong": int(wrong.sum())}  # fmt: skip
    if not bool(wrong.any()):
        return Finding(CODE, subject, Outcome.PASSED, figures=figures)
    at = divmod(int(wrong.int().argmax()), ours.shape[1])
    sentence = (
        f"{int(wrong.sum()):,} of {ours.numel():,} scales are neither the base's, nor doubled as often as the merged values need, nor the "
        f"largest of them / 448; the first at block {list(at)}: {float(theirs[at]):.9g}, the base has {float(ours[at]):.9g}, "
        f"largest / 448 = {float(reach.most[at]) / LARGEST:.9g}"
    )
    return Finding(CODE, subject, Outcome.FAILED, sentence, figures | {"problem": "scale"})


@dataclass(frozen=True)
class Reach:
    """The largest |v| of each block, float64 (block rows, block columns), and the least and the most that a merge may make of it."""

    most: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, expectation: Expectation, base: Coded, criterion: str) -> "Reach":
        """Raises DamagedError where a file ends early."""
        found = torch.zeros(3, *scales(base.scale).view(-1, base.across).shape, dtype=torch.float64)
        for block in Target(expectation, criterion).blocks():
            right = block.bound(Grid(torch.float32), "nearest")
            size = right.exact.abs()
            row = base.block_rows(range(block.row, block.row + len(size)))
            for into, values in zip(found, (size, (size - right.slack).clamp_(min=0), size + right.slack), strict=True):
                most = torch.stack([part.amax(1) for part in _columns(values, base)], 1)
                into.scatter_reduce_(0, row[:, None].expand_as(most), most, "amax")
        return cls(*found)

    def doubled(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Where a scale is the base's times the least power of two on which the block fits."""
        ratio = theirs / ours
        power = (torch.frexp(ratio)[0] == 0.5) & (ratio >= 2)
        return power & (self.high * (1 + 2 * U32) > OVERFLOW / 2 * theirs)

    def renewed(self, theirs: Tensor, dtype: torch.dtype, *, powers: bool) -> Tensor:
        """Where a scale is what the format's recipe makes of the block."""
        low, high = self.low / LARGEST * (1 - 2 * U32), self.high / LARGEST * (1 + 2 * U32)
        empty = (self.most == 0) & (theirs == 1)
        if powers:
            ends = [torch.exp2(torch.log2(end).ceil()) for end in (low, high)]
            return empty | (theirs == ends[0]) | (theirs == ends[1])
        low, high = (end.float().to(dtype).double() for end in (low, high))
        return empty | ((low <= theirs) & (theirs <= high))


def _columns(values: Tensor, base: Coded) -> Iterator[Tensor]:
    """Each block column."""
    return iter(torch.split(values, base.width or values.shape[1], dim=1))
