"""How far a sound merge may answer from the rounded expectation, and float32 from itself: derived, measured in the unit that is judged.

Link 2, m against r. A right merge may differ from r only where the interval of C4 holds more than one stored value: at N elements, by at
most D there. The answer to such a displacement is linear in it, Σ ±Dₖ·vₖ. S = Σ Dₖ²‖vₖ‖² is estimated twice, and the larger counts:
by one run of the unit with every sign drawn by chance (no bias: Hutchinson 1990), and by the measured answer to rounding itself,
‖r − x‖² · max over tensors of Σ D² / Σ (r − exact)², which is 12·f where f is the share of elements that may move by one ulp.

In a right merge an element leaves r only if the error of its producer, at most e, crosses the midpoint between two stored values; e is
far below their distance, so that the midpoint lies anywhere in [−e, e] with equal chance, and half of the elements move at most:
E‖m − r‖² ≤ S/2. How far above its mean that may be, with probability RISK:

    ‖m − r‖² ≤ S · min(1, 1/2 + √(t/2N)) · (1 + 2c(√t + t)),      t = −ln RISK

The first factor: how many of N elements moved (Hoeffding 1963). The second: how their answers add up, a quadratic form of independent
signs (Laurent and Massart 2000, Lemma 1), c = ‖C‖_F/tr C of the covariance C of the answer; its columns are taken as independent draws
of one covariance over the tokens, which the answer X itself estimates: c = ‖X·Xᵀ‖_F/(√width·‖X‖²). No more than statistical: a producer
that moves its free elements towards one direction on purpose is C4's to judge, and C5's. With N = 0, m must equal r exactly.

Link 1, x against u. A product computed in float32 is the exact product of weights perturbed by √n·2⁻²⁴ (n: length of the sums; rounding
errors of mean zero: Higham and Mary 2019, Theorem 2.4). That holds of each product: of W + Δ with its input, and in PEFT's layer of A with
the input and of B with A's answer, whose errors scale with Σ|b||a| and not with |Δ|, which is far smaller where ranks cancel. How the unit
answers to perturbed weights, A and B is measured: by the version `shaken`.
Two computations: ‖x − u‖² ≤ 2·n·2⁻⁴⁸·(‖shaken − x‖/SHAKE)²·(1 + 2c(√t + t)).
"""

import math

import torch
from torch import Tensor

from certify.bounds import U32
from certify.layers.shaken import SHAKE

RISK = 1e-6  # with which a sound unit may be refused
T = -math.log(RISK)


def tail(off: Tensor, *, each: bool) -> float:
    """1 + 2c(√t + t) for a difference of answers (rows, width); each: every row is judged alone."""
    rows, width = off.shape
    X = off.double()
    energy = float(X.square().sum())
    alone = each or rows == 1 or not energy
    c = 1 / math.sqrt(width) if alone else float((X @ X.T).norm()) / (math.sqrt(width) * energy)
    return 1 + 2 * c * (math.sqrt(T) + T)


def admissible(off: Tensor, distance: Tensor, rounding: Tensor, choices: Tensor, ratio: Tensor, *, each: bool) -> Tensor:
    """‖m − r‖ at most, float32's noise left out: one number, or one per expert.

    off  the answer to ±D, (rows, width)     distance  its norm     rounding  ‖r − x‖     choices  N     ratio  Σ D² / Σ (r − exact)²
    """
    largest = torch.maximum(distance, rounding * ratio.sqrt())
    moved = (0.5 + (T / (2 * choices.clamp(min=1))).sqrt()).clamp(max=1)
    return torch.where(choices > 0, largest * (moved * tail(off, each=each)).sqrt(), 0.0)


def float32_noise(distance: Tensor, longest: int, tails: float) -> Tensor:
    """‖x − u‖ at most. distance: ‖shaken − x‖."""
    return distance * (math.sqrt(2 * longest * tails) * U32 / SHAKE)


def too_many(flips: int, reference: int) -> bool:
    """Whether `flips` are more than chance makes of a rate that is at most the one that gave `reference`.

    Two counts of equal rate split like coins: exact test of Przyborowski and Wilenski 1940.
    """
    total = flips + reference
    return sum(math.comb(total, k) for k in range(flips, total + 1)) < RISK * 2**total if flips else False
