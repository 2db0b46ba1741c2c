"""Which stored values are right: the interval that a merge may reach, derived, not tuned.

Exact value, in float64:             v = W + Σ sₖ Bₖ Aₖ                                          (one sum per adapter k, rank rₖ)
What any float32 merge may miss:     e = Σ (rₖ+6)·u·|sₖ|·‖Bₖᵢ‖·‖Aₖⱼ‖ + (Σ rₖ + 6)·u·|W| + Σ (rₖ+8)·2⁻¹²⁶·max(1, |sₖ|),     u = 2⁻²⁴

Derivation (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., §3.1 and §4.2). A merge is a sum of Σrₖ + 1 terms: W and
the products s·b·a. Each product passes at most 2 roundings, 2 more if A and B are cast to float32 first, and every term takes part in
at most Σrₖ additions, in any order, fused or not, W first or last: γ(n) ≤ (n+6)·u. Σ|b||a| ≤ ‖Bᵢ‖·‖Aⱼ‖ (Cauchy–Schwarz) makes the
bound rank one. Each operation may also flush a result below 2⁻¹²⁶ to zero; without that term 138 sound tensors were refused.
The float64 of this file adds r·2⁻⁵³, which the spare roundings cover. Where every product is zero, since a row of B is, the additions are
exact and e = 0: such an element must be W itself, rounded.

A quantised W is code × scale. This file sees the product rounded to float32, a merge may have it rounded or exact: e grows by 2u·|W| +
2⁻¹²⁶. Where M is to be a code × scale, v is divided by the scale or multiplied by its reciprocal, which itself was rounded: e grows by
2u·|v|. Where every product is zero that is all of it, and e = 0 again where W is a number that M can be. The grid of codes is that of the
scales beside them; whether these are right is another question (`certify.checks.c4_scales`). Beyond 464 scales nothing is right.

e says what a float32 engine may do, not that the fine-tune is there. Where ranks cancel, Σ|b||a| is far above |Δ|, e swallows Δ, and the
interval would hold the base as well. What is stored is right beyond doubt where it is W + Δ rounded, whatever e is; so C4 adds up what
only e explains (`beyond_rounding`), and is undecided where that is not small against Δ: in the whole tensor, and in each row and column.
A single row's Δ may be far smaller than W, and adding rank after rank to W may miss that much (`additions`): there it is no doubt.

Rounding is monotone, so the stored value M of any right merge satisfies   round(v − e) ≤ M ≤ round(v + e).

DoRA (Liu et al. 2024, arXiv:2402.09353) scales the sum:  t = g·v,  g = m/‖V‖ over the n elements of a row or a column of the sum V.
A float32 merge takes the norm of its own sum, which is off by at most ‖e‖ (triangle inequality); squaring, adding n terms ≥ 0 in any order
and the root are off by a factor (n/2 + 3)·u (Higham §4.2: γₙ₊₁, halved by the root, + u), and squares below 2⁻¹²⁶ by √(n·2⁻¹²⁶). With
δ = (‖e‖ + √(n·2⁻¹²⁶))/‖V‖ + (n/2 + 3)·u the quotient is off by the factor ε = δ/(1 − δ) + 2u, and with the last product

    e' = |g|·(1 + ε)·e + |t|·(ε + 2u) + 2⁻¹²⁶.       Where δ ≥ ½ nothing is right: the direction of the sum is not known.

criterion   accepts
nearest     one rounding to the stored dtype, as above
peft        also what peft 0.21.2 does otherwise (tuners/lora/layer.py, Linear.merge): Δ rounded before it is added, to the base's dtype
            (safe_merge=True) or to the adapter's (adapters kept in half precision; on CUDA B·A is rounded before the scaling too);
            several adapters one after another, rounded after each, and so an attention's out_proj, which is added twice; under DoRA,
            every sum that a rounded Δ can give
faithful    both grid neighbours of every value in [v − e, v + e]; what stochastic rounding may choose from
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.grid import Grid, half_ulp

U32 = 2.0**-24  # unit roundoff of float32
TINY = 2.0**-126  # smallest normal float32; everything below may be flushed to zero
SPARE = 6  # roundings beyond the additions: two products, two casts, one cover for γ(n) = n·u/(1 − n·u), one for the float64 harness


@dataclass(frozen=True, slots=True)
class Delta:
    """One adapter's share of a block of rows, as the tensor is stored: scaling · left · right.

    left (rows, rank), right (rank, columns)   float32 or float64     dtype: the dtype that the adapter is stored in
    """

    left: Tensor
    right: Tensor
    scaling: float
    dtype: torch.dtype

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    def value(self) -> Tensor:
        """(rows, columns) in the factors' own dtype."""
        return (self.left @ self.right).mul_(self.scaling)

    def magnitude(self) -> Tensor:
        """|s|·‖left row‖·‖right column‖: an upper bound of |s|·Σ|b||a|."""
        return torch.outer(self.left.norm(dim=1), self.right.norm(dim=0)).mul_(abs(self.scaling))

    def slack(self) -> Tensor:
        """How far a float32 s·B·A may lie from `value`."""
        return self.magnitude().mul_((self.rank + SPARE) * U32).add_((self.rank + 8) * TINY * max(1.0, abs(self.scaling)))

    def double(self) -> "Delta":
        return Delta(self.left.double(), self.right.double(), self.scaling, self.dtype)


@dataclass(frozen=True, slots=True)
class Gain:
    """DoRA's factor, float64, and how far a float32 one may be from it, relative: one per row (rows, 1), or one per column (1, columns)."""

    value: Tensor
    error: Tensor

    @classmethod
    def of(cls, magnitude: Tensor, squares: Tensor, errors: Tensor, count: int) -> "Gain":
        """squares: Σ V², errors: Σ e², each over the `count` elements of a row or column; all float64 of one shape."""
        norm = squares.sqrt()
        off = (errors.sqrt() + (count * TINY) ** 0.5) / norm + (count / 2 + 3) * U32
        return cls(magnitude / norm, torch.where(off < 0.5, off / (1 - off) + 2 * U32, torch.nan))

    def __call__(self, exact: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        """(t, e') of v and e."""
        scaled = exact * self.value
        room = self.value.abs() * (1 + self.error) * slack + scaled.abs() * (self.error + 2 * U32) + TINY
        return scaled, room


@dataclass(frozen=True, slots=True)
class Bound:
    """Closed intervals per element, float64, (rows, columns); a value is right if one of them holds it. exact = v, slack = e."""

    exact: Tensor
    slack: Tensor
    intervals: tuple[tuple[Tensor, Tensor], ...]

    def holds(self, merged: Tensor) -> Tensor:
        """Where the stored values (float64) are right; NaN and infinity never are."""
        inside = torch.zeros_like(merged, dtype=torch.bool)
        for low, high in self.intervals:
            inside |= (low <= merged) & (merged <= high)
        return inside & torch.isfinite(merged)


def bound(base: Tensor, deltas: Sequence[Delta], grid: Grid, criterion: str, gain: Gain | None = None, *, decoded: bool = False) -> Bound:
    """What may be stored for W + Σ deltas, or for gain ∘ (W + Σ deltas).

    base (rows, columns)  in the dtype that the base is stored in; decoded: it was code × scale      grid  of the merged tensor
    """
    terms = [delta.double() for delta in deltas]
    exact, slack = reach(base, terms, criterion if gain else "nearest", decoded=decoded)
    if gain is not None:
        exact, slack = gain(exact, slack)
    if grid.scale is not None:
        slack += exact.abs().mul_(2 * U32)
    if decoded and gain is None:
        still = sum(term.magnitude() for term in terms) == 0
        slack.masked_fill_(still & (grid.nearest(exact) == exact), 0.0)
    low, high = exact - slack, exact + slack
    if criterion == "faithful":
        return Bound(exact, slack, ((grid.down(low), grid.up(high)),))
    nearest = (grid.nearest(low), grid.nearest(high))
    if criterion == "nearest" or gain is not None or not terms:
        return Bound(exact, slack, (nearest,))
    return Bound(exact, slack, (nearest, *_peft(base.double(), terms, base.dtype, grid)))


def reach(base: Tensor, terms: Sequence[Delta], criterion: str, *, decoded: bool = False) -> tuple[Tensor, Tensor]:
    """(v, e) of a block; under `peft`, e holds the rounding of Δ to the coarsest of its dtypes as well. terms: float64."""
    W = base.double()
    exact = W + sum(term.value() for term in terms)
    slack = W.abs().mul_((sum(term.rank for term in terms) + SPARE) * U32)
    for term in terms:
        slack += term.slack()
    untouched = sum(term.magnitude() for term in terms) == 0  # every product is zero, and W + 0 is exact
    slack.masked_fill_(untouched & ((W == 0) | (W.abs() >= TINY)), 0.0)
    if decoded:
        slack += W.abs().mul_(2 * U32).add_(TINY)
    if criterion == "peft":
        for term in terms:
            slack += torch.stack([half_ulp(term.value(), dtype) for dtype in {base.dtype, term.dtype}]).amax(0)
    return exact, slack


def additions(base: Tensor, deltas: Sequence[Delta], gain: Gain | None, exact: Tensor) -> Tensor:
    """What summing up alone may miss, whatever the ranks' products are: W's share of e. float64, as `exact`."""
    missed = base.double().abs().mul_((sum(delta.rank for delta in deltas) + SPARE) * U32)
    missed += sum((delta.rank + 8) * TINY * max(1.0, abs(delta.scaling)) for delta in deltas)
    if gain is None:
        return missed
    return gain.value.abs() * (1 + gain.error) * missed + exact.abs() * (gain.error + 2 * U32)


def beyond_rounding(merged: Tensor, right: Bound, base: torch.dtype, grid: Grid, criterion: str, adapters: int) -> Tensor:
    """How far stored values (float64) are from v, less what the declared roundings alone may do: the part that only e explains.

    One rounding moves a value by half a step; `faithful` by a whole one; PEFT rounds to the base's dtype after each adapter, and again.
    """
    most = grid.half_step(right.exact)
    if criterion == "faithful":
        most *= 2
    elif criterion == "peft":
        most += adapters * half_ulp(right.exact, base)
    return (merged - right.exact).abs_().sub_(most).clamp_(min=0)


def _peft(W: Tensor, terms: Sequence[Delta], base: torch.dtype, stored: Grid) -> Iterator[tuple[Tensor, Tensor]]:
    """PEFT adds one adapter after another, in place: interval arithmetic along its path.

    Of a single delta each way of rounding it is a path. Of several, each may be rounded in a way of its own (an attention's out_proj adds
    its delta first in the base's dtype, then in the adapter's): one path holds them all.
    """
    ways, own = [[_rounded_delta(term, *way) for way in _ways(term, base, alone=len(terms) == 1)] for term in terms], Grid(base)
    for path in [[way] for way in ways[0]] if len(terms) == 1 else [[_hull(found) for found in ways]]:
        low = high = W
        for least, most in path:
            low, high = own.nearest(low + least - _sum_error(low, least)), own.nearest(high + most + _sum_error(high, most))
        yield stored.nearest(low), stored.nearest(high)


def _hull(intervals: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    lows, highs = zip(*intervals, strict=True)
    return torch.stack(lows).amin(0), torch.stack(highs).amax(0)


def _ways(term: Delta, base: torch.dtype, *, alone: bool) -> Iterator[tuple[Grid, bool]]:
    """(the grid that Δ is rounded to, whether it is rounded before it is scaled as well); unrounded and alone it is `nearest`'s."""
    if not alone:
        yield Grid(torch.float32), False
    for dtype in sorted({base, term.dtype} - {torch.float32}, key=str):
        yield from ((Grid(dtype), False), (Grid(dtype), True))


def _sum_error(value: Tensor, addend: Tensor) -> Tensor:
    """What one float32 sum may miss; nothing where nothing is added."""
    return (2 * U32 * (value.abs() + addend.abs())).masked_fill_(addend == 0, 0.0)


def _rounded_delta(term: Delta, grid: Grid, scaled_after: bool) -> tuple[Tensor, Tensor]:
    """The least and the greatest Δ that rounding to `grid` can give; `scaled_after`: B·A is rounded, scaled, and rounded again."""
    value, slack = term.value(), term.slack()
    if not scaled_after or term.scaling == 0:
        return grid.nearest(value - slack), grid.nearest(value + slack)
    size = abs(term.scaling)
    low, high = (grid.nearest(end / size) * size for end in (value - slack, value + slack))
    return grid.nearest(low), grid.nearest(high)
