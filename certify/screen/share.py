"""How many stored values a small change moves, and how much of it survives: predicted from the exponents of the base alone.

The base lies on its grid. An element is stored as W + g·round(δ/g), g being the grid's gap at W: it changes only if δ passes half the gap.
For δ ~ N(0, σ²), independent of W, t = g/σ, φ and Q the density and the tail of the standard normal:

    share(t)      = P(|δ| > g/2)                 = 2 Q(t/2)
    retention(t)  = E[δ·g·round(δ/g)] / σ²       = 2t Σₖ φ((k+½)t)
    energy(t)     = E[(g·round(δ/g))²] / σ²      = 2t² Σₖ (2k+1) Q((k+½)t)

since g·round(x/g) = ±g·#{k ≥ 0: |x| > (k+½)g}. Where t < ½ the sums are 1 and 1 + t²/12 to the last bit of a float64 (Poisson summation:
what is left out is below e^(−2π²/t²)). A tensor is the mean over its gaps.

Left out: the half gap below a power of two (one element in 128 of bf16, on one side), and that B·A of a small rank has longer tails than a
normal, which makes σ 2 % too small at rank 16 and 5 % at rank 8 (measured). Nearest rounding is assumed: a merge that was rounded
stochastically looks larger than it is, by 1.4 at ‖Δ‖/‖W‖ = 1e-3 in bf16 and 2.4 at 1e-4 (measured).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from certify.grid import half_ulp

TERMS = 16  # of the sums at t ≥ ½: the last one is at 7.75 σ
FINE = 0.5  # t below which the sums are their limits
SATURATED = 0.6  # share above which it says little about σ, and the norm says more
LEAST, MOST, STEPS = 1e-30, 1e30, 64  # bisection of σ, geometric: 200 octaves halved 64 times are 1e-17 of an octave
ORIGIN, SPAN = 160, 320  # exponents of gaps: 2⁻¹⁴⁸ … 2¹⁰⁴ in float32


@dataclass
class Gaps:
    """The histogram of a tensor's gaps, folded block by block. counts[e + ORIGIN]: elements whose gap is 2^e."""

    counts: Tensor = field(default_factory=lambda: torch.zeros(SPAN, dtype=torch.int64))

    def fold(self, base: Tensor, dtype: torch.dtype) -> None:
        """base: any shape, float32; dtype: the grid's."""
        exponents = torch.frexp(half_ulp(base, dtype))[1]  # of half a gap, as m·2^e with m = ½: that of the gap itself
        self.counts += torch.bincount(exponents.view(-1) + ORIGIN, minlength=SPAN)

    def share(self, sigma: float) -> float:
        """The predicted share of elements that change."""
        return self._mean(lambda t: torch.erfc(t / math.sqrt(8)), sigma)

    def retention(self, sigma: float) -> float:
        """The predicted share of the change that is in the stored values: ⟨stored, δ⟩ / ⟨δ, δ⟩."""
        return self._mean(_retention, sigma)

    def energy(self, sigma: float) -> float:
        """The predicted mean square of what was stored."""
        return self._mean(_energy, sigma) * sigma**2

    def sigma(self, share: float, energy: float) -> float:
        """The σ that explains a tensor: from the share of elements that changed, or where most did, from their mean square."""
        if share <= SATURATED:
            return _inverse(self.share, share)
        return _inverse(self.energy, energy)

    def _mean(self, function: Callable[[Tensor], Tensor], sigma: float) -> float:
        held = self.counts.nonzero().view(-1)
        weights = self.counts[held].double()
        gaps = torch.exp2((held - ORIGIN).double())
        return float((function(gaps / sigma) * weights).sum() / weights.sum())


def _halves(t: Tensor) -> tuple[Tensor, Tensor]:
    """((k+½)·t, 2k+1): one row per gap, one column per k."""
    k = torch.arange(TERMS, dtype=torch.float64)
    return t[:, None] * (k + 0.5), 2 * k + 1


def _retention(t: Tensor) -> Tensor:
    at, _ = _halves(t)
    density = torch.exp(at.square() / -2) / math.sqrt(2 * math.pi)
    return torch.where(t < FINE, torch.ones_like(t), 2 * t * density.sum(dim=1))


def _energy(t: Tensor) -> Tensor:
    at, odd = _halves(t)
    tail = torch.erfc(at / math.sqrt(2)) / 2
    return torch.where(t < FINE, 1 + t.square() / 12, 2 * t.square() * (odd * tail).sum(dim=1))


def _inverse(rising: Callable[[float], float], value: float) -> float:
    """Where a rising function of σ takes a value."""
    low, high = LEAST, MOST
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return low
