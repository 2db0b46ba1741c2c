"""C4: a tensor that the adapter touches is a right rounding of W + Δ; a tensor that it replaces is the adapter's."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certify.bounds import Bound, Delta, bound, half_ulp
from certify.errors import DamagedError
from certify.expect.ledger import Part
from certify.finding import Figure, Finding, Outcome
from certify.inputs.adapter import AdapterTensor
from certify.inputs.dtypes import FLOATS
from certify.inputs.stored import Stored
from certify.request import CRITERIA

CODE = "C4"
TITLE = "merged tensors are W + Δ, rounded as declared, and every adapter tensor is used"
BLOCK = 1 << 19  # elements per block; its float64 twin has 4 MiB
RATIO_MAX = 1e30  # what NaN and infinity count as


def merged_tensor(subject: str, base: Stored, merged: Stored, parts: Sequence[Part], criterion: str) -> Finding:
    """One touched matrix against the interval of `certify.bounds`, block of rows by block of rows.

    Where it fails, the looser criteria are tried: the finding's figure `passes_under` names the first that would accept the tensor.
    """
    try:
        deltas = [_factors(part) for part in parts]
        tally = Tally(base.shape)
        for row, ours, theirs in _blocks(base, merged):
            tally.judge(row, ours, theirs, [_rows(delta, row, len(ours)) for delta in deltas], criterion)
        figures = tally.figures()
        if not tally.beyond:
            return Finding(CODE, subject, Outcome.PASSED, figures=figures)
        looser = (other for other in CRITERIA if other != criterion and _accepts(base, merged, deltas, other))
        figures["passes_under"] = next(looser, None)
    except DamagedError as error:
        return Finding(CODE, subject, Outcome.FAILED, str(error), {"unreadable": True})
    return Finding(CODE, subject, Outcome.FAILED, tally.sentence(parts), figures)


def replaced_tensor(subject: str, merged: Stored, source: AdapterTensor) -> Finding:
    """One tensor of a module that was trained and saved whole: the adapter's value, rounded once to the stored dtype."""
    try:
        expected = source.load().to(FLOATS[merged.dtype]).reshape(-1)
        differing = 0
        for number, theirs in enumerate(merged.elements(BLOCK)):
            ours = expected[number * BLOCK :][: theirs.numel()]
            differing += int(((ours != theirs) | ~torch.isfinite(theirs)).sum())
    except DamagedError as error:
        return Finding(CODE, subject, Outcome.FAILED, str(error), {"unreadable": True})
    figures: dict[str, Figure] = {"elements": merged.entry.elements, "beyond": differing, "replaced": True}
    if not differing:
        return Finding(CODE, subject, Outcome.PASSED, figures=figures)
    sentence = f"the adapter replaces this tensor, but {differing:,} of {merged.entry.elements:,} elements are not the adapter's"
    return Finding(CODE, subject, Outcome.FAILED, sentence, figures)


@dataclass
class Tally:
    """What the blocks of one tensor add up to.

    beyond     elements outside their interval        ratio  largest |M − v| / (½ ulp + e) seen; 1 is what one rounding may use
    along      ⟨M − W, Δ⟩        energy  ⟨Δ, Δ⟩        retention = along / energy: the share of Δ that is in the stored weights
    worst      the element farthest from v of those beyond: index, stored value, allowed interval
    """

    shape: tuple[int, ...]
    beyond: int = 0
    changed: int = 0
    ratio: float = 0.0
    along: float = 0.0
    energy: float = 0.0
    worst: dict[str, Figure] = field(default_factory=dict)
    _farthest: float = -1.0

    def judge(self, row: int, base: Tensor, merged: Tensor, deltas: Sequence[Delta], criterion: str) -> None:
        """One block of rows. A float32 merge of our own is one of the right ones: rows where it gives the stored values are right."""
        delta = deltas[0].value() if len(deltas) == 1 else torch.stack([d.value() for d in deltas]).sum(0)
        W, M = base.float(), merged.float()
        own = W + delta
        self.along += float(torch.dot((M - W).view(-1), delta.view(-1)))
        self.energy += float(torch.dot(delta.view(-1), delta.view(-1)))
        self.changed += int((M != W).sum())
        same = ((own.to(merged.dtype) == merged) & torch.isfinite(merged)).all(dim=1)
        used = (M - own).abs_().div_(half_ulp(own, merged.dtype)).amax(dim=1)  # e is left out: it only makes the ratio smaller
        self.ratio = max(self.ratio, float(used[same].max()) if bool(same.any()) else 0.0)
        if not bool(same.all()):
            rows = (~same).nonzero().view(-1)
            chosen = [Delta(d.left[rows], d.right, d.scaling, d.dtype) for d in deltas]
            self._examine(rows + row, merged[rows], bound(base[rows], chosen, merged.dtype, criterion))

    def _examine(self, rows: Tensor, merged: Tensor, right: Bound) -> None:
        """The rows (their numbers in the tensor) that need the interval itself."""
        M = merged.double()
        outside = ~right.holds(M)
        ratio = ((M - right.exact).abs() / (half_ulp(right.exact, merged.dtype) + right.slack)).nan_to_num(RATIO_MAX, RATIO_MAX)
        self.ratio = max(self.ratio, float(ratio.max()))
        count = int(outside.sum())
        if not count:
            return
        self.beyond += count
        distance = torch.where(outside, (M - right.exact).abs().nan_to_num(torch.inf, torch.inf), -1.0)
        place = int(distance.argmax())
        if float(distance.view(-1)[place]) > self._farthest:
            self._farthest = float(distance.view(-1)[place])
            at = divmod(place, M.shape[1])
            low, high = right.intervals[0]
            self.worst = {"worst_index": f"[{int(rows[at[0]])}, {at[1]}]", "worst_value": _json(M[at])}
            self.worst |= {"worst_low": _json(low[at]), "worst_high": _json(high[at])}

    @property
    def retention(self) -> float | None:
        kept = self.along / self.energy if self.energy > 0 else math.nan
        return kept if math.isfinite(kept) else None

    def figures(self) -> dict[str, Figure]:
        rows, columns = self.shape
        norm = self.energy**0.5 if math.isfinite(self.energy) else None
        return {"elements": rows * columns, "beyond": self.beyond, "changed": self.changed, "ratio": self.ratio,
                "retention": self.retention, "delta_norm": norm, **self.worst}  # fmt: skip

    def sentence(self, parts: Sequence[Part]) -> str:
        """What was found at the worst element, what was allowed, and what it looks like."""
        elements = self.shape[0] * self.shape[1]
        kept = "" if self.retention is None else f"; fitted coefficient of the delta {self.retention:.4g} ({_likely(self, parts)})"
        return (
            f"{self.beyond:,} of {elements:,} elements ({self.beyond / elements:.2%}) are no right rounding of W + Δ; "
            f"worst at {self.worst['worst_index']}: stored {self.worst['worst_value']}, "
            f"allowed [{self.worst['worst_low']}, {self.worst['worst_high']}]{kept}"
        )


def _json(value: Tensor) -> float | str:
    """A number that JSON can carry and a person can read: six digits; NaN and infinity by name."""
    return float(f"{float(value):.6g}") if bool(torch.isfinite(value)) else str(float(value))


def _likely(tally: Tally, parts: Sequence[Part]) -> str:
    """The usual cause of a coefficient; within 3 %, since the rounding of small deltas moves it."""
    c, root = tally.retention or 0.0, parts[0].rank ** 0.5
    if not tally.changed:
        return "equal to the base: never merged"
    causes = [(1.0, "the right delta in most elements"), (2.0, "as if merged twice"), (-1.0, "as if subtracted")]
    causes += [(root, "as if α/√r were used for α/r"), (1 / root, "as if α/r were used for α/√r")] if root > 1 else []
    near = [cause for value, cause in causes if abs(c - value) <= 0.03 * abs(value)]
    return " or ".join(near) if near else "another delta: wrong tensor, orientation or scaling"


def _factors(part: Part) -> Delta:
    """The two thin factors of a delta in float32, in the order in which the tensor is stored."""
    a, b = part.a.load(), part.b.load()
    dtype = a.dtype if a.dtype == b.dtype else torch.float32
    if part.orientation == "out,in":
        return Delta(b.float(), a.float(), part.scaling, dtype)
    return Delta(a.float().T.contiguous(), b.float().T.contiguous(), part.scaling, dtype)


def _rows(delta: Delta, row: int, count: int) -> Delta:
    return Delta(delta.left[row : row + count], delta.right, delta.scaling, delta.dtype)


def _blocks(base: Stored, merged: Stored) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, rows of the base, rows of the merged tensor)."""
    columns = base.shape[1]
    height = max(1, BLOCK // max(1, columns))
    step = max(1, height * columns)
    pairs = zip(base.elements(step), merged.elements(step), strict=True)
    for number, (ours, theirs) in enumerate(pairs):
        yield number * height, ours.view(-1, columns), theirs.view(-1, columns)


def _accepts(base: Stored, merged: Stored, deltas: Sequence[Delta], criterion: str) -> bool:
    """True if another criterion accepts every element; stops at the first block that it refuses."""
    return all(
        bool(bound(ours, [_rows(d, row, len(ours)) for d in deltas], theirs.dtype, criterion).holds(theirs.double()).all())
        for row, ours, theirs in _blocks(base, merged)
    )
