"""To a neighbour so that no error is left in the directions that an adapter works in, with the least noise elsewhere.

Per row:  minimise ‖M − t‖²   over M_j ∈ {low_j, high_j}, the grid neighbours of t_j = W_j + Δ_j,   subject to (M − t)·Q = 0.

M(μ), the neighbour nearest to t − Q·μ, minimises the Lagrangian; its error e(μ) = (M(μ) − t)·Q is the dual's gradient. So the rule is dual
ascent: μ ← μ + step · e(μ), two thin products a round, each row with a step of its own (Barzilai and Borwein 1988, IMA J. Numer. Anal. 8).
Each row keeps the best μ that it met. By weak duality ‖M(μ) − t‖² + 2 μ·e(μ) is a floor below the noise of any rounding to neighbours
that leaves no such error; what the result has above it is returned.

Where Δ is much smaller than the grid, nothing answers until Q·μ is about half a step of it: the first step is found by looking along
the gradient in a sample of the columns, for all rows of the block at once.
"""

import torch

from merge.rounding.space import Space
from merge.rounding.span import Span

LEAST, MOST = 0.3, 50.0  # of a step; 1 is right where t is spread evenly between its neighbours
ENOUGH = 0.02  # subspace error at which a block is done. |retention − 1| ≤ subspace error (Cauchy, Schwarz), so 2 % is all it can miss
SHORTEST = 1e-30  # of a gradient: divided by, and smaller than any that a weight has
SAMPLED, STRIP = 8, 128  # of every eight strips of columns, one; as wide as a quantiser's block
AMOUNTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.4, 2.0, 3.0)  # ‖Q·μ‖ per column, in mean grid steps


def faithful(
    exact: torch.Tensor, low: torch.Tensor, high: torch.Tensor, span: Span, wanted: torch.Tensor, rounds: int, space: Space
) -> float:
    """`low` becomes the chosen neighbours; returns the energy that their noise may have above the least possible.

    exact   (n, columns)  float32, contiguous; low and high are its neighbours, and both are overwritten
    wanted  (n, k)  Δ in the span's coordinates
    rounds  at most; fewer where the block's subspace error ‖(M − t)·Q‖ / ‖Δ·Q‖ is small enough
    """
    threshold, raised = space.block("threshold", exact.shape), space.block("raised", exact.shape)
    begin = span.project(torch.sub(low, exact, out=raised))
    torch.sub(exact, torch.add(low, high, out=raised).div_(2), out=threshold)
    step_up = high.sub_(low)

    def error(multiplier: torch.Tensor) -> torch.Tensor:
        span.carry(multiplier, raised).lt_(threshold).mul_(step_up)
        return begin + span.project(raised)

    multiplier, best = torch.zeros_like(begin), torch.zeros_like(begin)
    found = error(multiplier)
    best_error, least = found, _squares(found)
    goal = (ENOUGH * torch.linalg.vector_norm(wanted)).square()
    step = None
    for _ in range(rounds):
        if bool(least.sum() <= goal):
            break
        moved = (_first_step(span, found, threshold, step_up) if step is None else step) * found
        multiplier = multiplier + moved
        now = error(multiplier)
        step, found = _next_step(step, moved, now - found), now
        better = _squares(found) < least
        best, best_error = torch.where(better, multiplier, best), torch.where(better, found, best_error)
        least = torch.minimum(least, _squares(found))
    if best_error is not found:
        error(best)
    low.add_(raised)
    return float(-2 * (best.double() * best_error.double()).sum())


def _squares(rows: torch.Tensor) -> torch.Tensor:
    return rows.square().sum(1, keepdim=True)


def _next_step(step: torch.Tensor | None, moved: torch.Tensor, answered: torch.Tensor) -> torch.Tensor:
    """−⟨δμ, δe⟩ / ⟨δe, δe⟩ per row, doubled where nothing answered."""
    size = _squares(answered)
    secant = -(moved * answered).sum(1, keepdim=True) / size.clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(size > 0, secant, 2.0 if step is None else 2 * step).clamp_(LEAST, MOST)


def _first_step(span: Span, gradient: torch.Tensor, threshold: torch.Tensor, step_up: torch.Tensor) -> torch.Tensor:
    """Per row, how far along its gradient the error in that direction vanishes: one length of μ for all rows, in a sample of columns.

    The sum over rows of e(μ) in the gradient's direction falls as μ grows; it is followed over `AMOUNTS` and met by interpolation.
    """
    lengths = torch.linalg.vector_norm(gradient, dim=1, keepdim=True).clamp_min_(SHORTEST)
    threshold, step_up = _sample(threshold), _sample(step_up)
    thin = Span(_sample(span.basis.T.contiguous()).T, None if span.own is None else _sample(span.own))
    ray = thin.carry(gradient / lengths, torch.empty_like(threshold))
    along, raised = ray * step_up, torch.empty_like(ray)
    columns, unit = span.basis.shape[0], float(step_up.mean()) * span.basis.shape[0] ** 0.5
    already = float(torch.gt(threshold, 0, out=raised).mul_(along).sum())
    before, left = 0.0, float(lengths.sum())
    whole = left
    for amount in AMOUNTS[1:]:
        answered = float(torch.mul(ray, amount * unit, out=raised).lt_(threshold).mul_(along).sum()) - already
        now = whole + answered * columns / ray.shape[1]
        if now <= 0:
            before += (amount - before) * left / (left - now)
            break
        before, left = amount, now
    found: torch.Tensor = before * unit / lengths
    return found


def _sample(block: torch.Tensor) -> torch.Tensor:
    """One strip of columns in `SAMPLED`, side by side; all of a narrow block."""
    strips = block.shape[1] // STRIP
    return block if strips < SAMPLED else block[:, : strips * STRIP].view(len(block), strips, STRIP)[:, ::SAMPLED].flatten(1)
