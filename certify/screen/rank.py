"""How many ranks of a change stand out of the noise of rounding: advice, from a sample of a tensor's rows.

Of D = merged − base, the singular values of a low-rank change stand above the edge σ(√m + √n) of independent noise (Marchenko–Pastur) as
long as its retention is above about 4·rank/width. Two things make the noise independent enough (both keep the rank): elements whose gap is
coarse against the change count less, and rows and columns are scaled to equal noise. A rank is the usual one or off by 1 or 2 (measured: 9
of 96 sound tensors), and ranks of 1 and 2 are seen as more below ρ = 3e-2, where rounding answers unevenly to a delta of few directions. So
it is a figure for the reader; only a change that shows no low rank at all is a finding.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from certify.grid import half_ulp
from certify.inputs.dtypes import FLOATS
from certify.inputs.stored import Stored

ROWS, COLUMNS = 1024, 2048  # of the sample: evenly spread rows; the first columns
RANKS = 128  # looked for at most
MARGIN = 1.1  # over the edge: the largest singular value of a finite noise matrix fluctuates by n^(−2/3)
FAINT = 4  # changed elements per free parameter of the factors below which nothing can be said
KEPT = 0.9  # retention below which a change without a low rank may be a faint one
POWER, WHITENINGS = 2, 3  # power steps of a sketch; rounds of scaling rows and columns


@dataclass(frozen=True, slots=True)
class Rank:
    """What the sample shows. rank: ranks seen; None where it is too faint to tell, or where it is full, or at least `least`."""

    rank: int | None
    least: int | None = None


def sampled_rank(base: Stored, merged: Stored, rho: float, kept: float) -> Rank:
    """Of one matrix. rho: the estimated ‖Δ‖/‖W‖; kept: its retention. Raises DamagedError where a file ends early."""
    change, changed = _sample(base, merged, rho)
    most = min(RANKS, min(change.shape) // 2)
    rank = _visible(change, most)
    full = rank == 0 or rank >= most
    if changed < FAINT * max(1, rank) * sum(change.shape) or (full and kept < KEPT):
        return Rank(None)
    return Rank(None, most) if full else Rank(rank)


def _sample(base: Stored, merged: Stored, rho: float) -> tuple[Tensor, int]:
    """(the change in some rows and columns, float64, less where the gap is coarse against it; how many elements changed)."""
    height, width = base.shape
    rows = sorted({*torch.linspace(0, height - 1, min(height, ROWS), dtype=torch.float64).round().long().tolist()})
    W, M = (side.rows(rows)[:, : min(width, COLUMNS)].double() for side in (base, merged))
    change = (M - W).nan_to_num_(0.0, 0.0, 0.0)
    sigma = max(rho * float(W.nan_to_num(0.0, 0.0, 0.0).square_().mean().sqrt()), 1e-150)
    changed = int((change != 0).sum())
    return change.div_(half_ulp(W, FLOATS[merged.dtype]).square_().div_(3 * sigma**2).add_(1)), changed


def _visible(x: Tensor, most: int) -> int:
    """Singular values above the edge of what is left when those before them are taken away."""
    rank = 0
    for _ in range(WHITENINGS):
        Q = _sketch(x, most)
        u, s, v = torch.linalg.svd(Q.T @ x, full_matrices=False)
        rest = float((x - Q @ (Q.T @ x)).square_().sum())
        rank = _above(s, rest, x.shape)
        noise = x - (Q @ u[:, :rank] * s[:rank]) @ v[:rank]
        rows, columns = noise.square().mean(dim=1).sqrt(), noise.square().mean(dim=0).sqrt()
        least = max(float(rows.mean()), 1e-300)
        x = x / rows.clamp(min=1e-3 * least)[:, None] / columns.clamp(min=1e-3 * least)[None, :] * least
    return rank


def _above(s: Tensor, rest: float, shape: torch.Size) -> int:
    """rest: energy outside the sketch."""
    m, n = shape
    tail = s.square().flip(0).cumsum(0).flip(0)
    for rank, value in enumerate(s.tolist()):
        noise = math.sqrt((rest + float(tail[rank])) / ((m - rank) * (n - rank)))
        if value <= MARGIN * noise * (math.sqrt(m - rank) + math.sqrt(n - rank)):
            return rank
    return len(s)


def _sketch(x: Tensor, width: int) -> Tensor:
    """Orthonormal columns that hold the leading left singular vectors (Halko, Martinsson, Tropp 2011, algorithm 4.4)."""
    chance = torch.Generator().manual_seed(0)
    y = x @ torch.randn(x.shape[1], width, generator=chance, dtype=x.dtype)
    for _ in range(POWER):
        y = x @ (x.T @ torch.linalg.qr(y)[0])
    Q: Tensor = torch.linalg.qr(y)[0]
    return Q
