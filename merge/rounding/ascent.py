"""To a neighbour so that no error is left in the directions that an adapter works in, with the least noise elsewhere.

Per row:  minimise ‖M − t‖²   over M_j ∈ {low_j, high_j}, the grid neighbours of t_j = W_j + Δ_j,   subject to (M − t)·Q = 0.

M(μ), the neighbour nearest to t − Q·μ, minimises the Lagrangian; its error e(μ) = (M(μ) − t)·Q is the dual's gradient. So the rule is dual
ascent: μ ← μ + step · e(μ), two thin products a round, each row with a step of its own (Barzilai and Borwein 1988, IMA J. Numer. Anal. 8).
Each row keeps the best μ that it met. By weak duality ‖M(μ) − t‖² + 2 μ·e(μ) is a floor below the noise of any rounding to neighbours
that leaves no such error; what the result has above it is kept.

Where Δ is much smaller than the grid, nothing answers until Q·μ is about half a step of it: how far the first round goes is found by
looking along the gradient in a sample of the columns, for all rows of a block at once, and held for the blocks that follow.
"""

from dataclasses import dataclass, replace

import torch

from merge.rounding.space import Space
from merge.rounding.span import Span

LEAST, MOST = 0.3, 50.0  # of a row's pace; 1 is right where t is spread evenly between its neighbours
ENOUGH = 0.02  # subspace error at which a block is done. |retention − 1| ≤ subspace error (Cauchy, Schwarz), so 2 % is all it can miss
FLIPS = 2  # passes after the rounds, of one element a row; with more of them retention falls below 1 again (merge/DECISIONS.md)
SHORTEST = 1e-30  # of a gradient: divided by, and smaller than any that a weight has
SAMPLED, STRIP = 8, 128  # of every eight strips of columns, one; as wide as a quantiser's block
AMOUNTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.4, 2.0, 3.0)  # ‖Q·μ‖ per column, in mean grid steps


@dataclass(slots=True)
class Ascent:
    """The rule at work on consecutive blocks of vectors.

    rounds  at most; fewer where a block's subspace error ‖(M − t)·Q‖ / ‖Δ·Q‖ is small enough. Where it is not in the end, `_flip` follows
    above   the energy that the noise so far may have above the least possible
    amount  ‖Q·μ‖ per column after the first round, in mean grid steps; None before one was needed
    """

    rounds: int
    space: Space
    above: float = 0.0
    amount: float | None = None

    def choose(self, past: torch.Tensor, step: torch.Tensor, span: Span, wanted: torch.Tensor) -> torch.Tensor:
        """1 where the upper neighbour is chosen and 0 elsewhere, in a block of the space.

        past    (n, columns)  float32, overwritten: t − low      step  (n, columns)  float32: high − low, 0 for a grid point
        wanted  (n, k)  Δ in the span's coordinates
        """
        begin, raised = span.project(past).neg_(), self.space.block("raised", past.shape)
        threshold = past.sub_(step, alpha=0.5)
        multiplier = torch.zeros_like(begin)
        found = begin + span.project(torch.gt(threshold, 0, out=raised).mul_(step))
        best, least = torch.stack((multiplier, found)), torch.linalg.vector_norm(found, dim=1, keepdim=True)
        goal, pace = ENOUGH * float(torch.linalg.vector_norm(wanted)), None
        for _ in range(self.rounds):
            if float(torch.linalg.vector_norm(least)) <= goal:
                break
            moved = (self._first_pace(span, found, threshold, step) if pace is None else pace) * found
            multiplier = multiplier + moved
            now = begin + span.project(span.carry(multiplier, raised).lt_(threshold).mul_(step))
            pace, found = _next_pace(pace, moved, now - found), now
            size = torch.linalg.vector_norm(found, dim=1, keepdim=True)
            best = torch.where(size < least, torch.stack((multiplier, found)), best)
            least = torch.minimum(least, size)
        self.above -= 2 * float(torch.dot(*best.double().flatten(1)))
        up = span.carry(best[0], raised).lt_(threshold)
        if bool(torch.linalg.vector_norm(least) > goal):
            self._flip(up, step, threshold, span, best[1], goal / len(least) ** 0.5)
        return up

    def _flip(self, up: torch.Tensor, step: torch.Tensor, threshold: torch.Tensor, span: Span, error: torch.Tensor, goal: float) -> None:
        """What no multiplier reaches: in every row, one element at a time goes to its other neighbour, the one that takes off most.

        Moving element j by d changes ‖e‖² by d·(2·(e·Qᵀ)_j + d·‖Q_j‖²), and the noise by −2·d·threshold_j.
        """
        change, weight = step.mul_(up.mul_(-2).add_(1)), span.weights()
        for _ in range(FLIPS):
            gain = span.carry(2 * error, up).addcmul_(change, weight).mul_(change)
            most, where = gain.min(1, keepdim=True)
            move = change.gather(1, where).mul_((most < 0) & (torch.linalg.vector_norm(error, dim=1, keepdim=True) > goal))
            self.above -= 2 * float((move * threshold.gather(1, where)).sum())
            error = error + move * span.elements(where)
            change.scatter_(1, where, torch.where(move == 0, change.gather(1, where), -move))
        torch.lt(change, 0, out=up)
        change.abs_()

    def _first_pace(self, span: Span, gradient: torch.Tensor, threshold: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """Per row, how many lengths of its gradient make the amount."""
        lengths = torch.linalg.vector_norm(gradient, dim=1, keepdim=True).clamp_min_(SHORTEST)
        if self.amount is None:
            self.amount = _amount(span, gradient / lengths, float(lengths.sum()), threshold, step)
        found: torch.Tensor = self.amount * _unit(step) / lengths
        return found


def _unit(step: torch.Tensor) -> float:
    """‖Q·μ‖ of a row that has one mean grid step in each column."""
    unit: float = float(step.mean()) * step.shape[1] ** 0.5
    return unit


def _next_pace(pace: torch.Tensor | None, moved: torch.Tensor, answered: torch.Tensor) -> torch.Tensor:
    """−⟨δμ, δe⟩ / ⟨δe, δe⟩ per row, doubled where nothing answered."""
    size = answered.square().sum(1, keepdim=True)
    secant = -(moved * answered).sum(1, keepdim=True) / size.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(size > 0, secant, 2.0 if pace is None else 2 * pace).clamp_(LEAST, MOST)


def _amount(span: Span, directions: torch.Tensor, whole: float, threshold: torch.Tensor, step: torch.Tensor) -> float:
    """How far along their gradients the errors of all rows vanish together: their sum falls as μ grows, and is met by interpolation.

    directions  (n, k), of length one      whole  the sum of the gradients' lengths
    """
    columns, unit = step.shape[1], _unit(step)
    threshold, step = _sample(threshold), _sample(step)
    thin = replace(span, rows=_sample(span.rows), own=None if span.own is None else _sample(span.own))
    ray = thin.carry(directions, torch.empty_like(threshold))
    along, raised = ray * step, torch.empty_like(ray)
    already = float(torch.gt(threshold, 0, out=raised).mul_(along).sum())
    before, left = 0.0, whole
    for amount in AMOUNTS[1:]:
        answered = float(torch.mul(ray, amount * unit, out=raised).lt_(threshold).mul_(along).sum()) - already
        now = whole + answered * columns / ray.shape[1]
        if now <= 0:
            return before + (amount - before) * left / (left - now)
        before, left = amount, now
    return before


def _sample(block: torch.Tensor) -> torch.Tensor:
    """One strip of columns in `SAMPLED`, side by side; all of a narrow block."""
    strips = block.shape[1] // STRIP
    return block if strips < SAMPLED else block[:, : strips * STRIP].view(len(block), strips, STRIP)[:, ::SAMPLED].flatten(1)
