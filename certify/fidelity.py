"""How much of the adapter's change is in the stored weights, folded block by block: memory is a block and a few thin matrices.

Δ        what the adapter adds, (rows, columns) as the tensor is stored          Δ'  what was stored: M − W
         under DoRA the whole change that it makes, g∘(W + s·B·A) − W: the gain is part of it, and has no row space of its own
retention       ⟨Δ', Δ⟩ / ⟨Δ, Δ⟩              1 is perfect, 0 is "nothing was merged"
error energy    ‖Δ' − Δ‖ / ‖Δ‖
subspace error  ‖(Δ' − Δ)·Q‖ / ‖Δ·Q‖          Q (in, k): orthonormal basis of the row space of A, the inputs that the adapter answers
                                              to. Δ = B·A lies in it, so that ‖Δ·Q‖ = ‖Δ‖.
σ               the standard deviation of the retention if every element went to one of its two neighbours by chance, without bias:
                W + Δ between low and high goes up with probability (W+Δ−low)/(high−low), which has the variance (W+Δ−low)·(high−W−Δ);
                the errors are independent and retention is linear in them:   σ² = Σ variance·Δ² / ⟨Δ, Δ⟩².

The error of a module that stores (in, out) (Conv1D) meets Q with its rows, one that stores (out, in) with its columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from certify.bounds import Delta
from certify.expect.place import Orientation
from certify.finding import Figure
from certify.grid import Grid


@dataclass
class Fidelity:
    """The sums of one tensor. basis: Q, or None where A is not finite; flipped: the tensor is stored (in, out); noisy: σ is wanted."""

    basis: Tensor | None
    flipped: bool
    noisy: bool
    along: float = 0.0
    energy: float = 0.0
    error: float = 0.0
    noise: float = 0.0
    _coherent: float = 0.0
    _folded: Tensor = field(default_factory=lambda: torch.zeros(()))

    @classmethod
    def of(cls, deltas: Sequence[Delta], orientation: Orientation, *, noisy: bool) -> Self:
        """deltas: their whole factors; the basis spans the A of all of them."""
        flipped = orientation == "in,out"
        factors = [delta.left if flipped else delta.right.T for delta in deltas]  # each (in, rank)
        return cls(_basis(torch.cat(factors, dim=1)), flipped, noisy)

    def fold(self, row: int, stored: Tensor, delta: Tensor, right: Tensor, grid: Grid) -> None:
        """One block: rows row … row+n of Δ', Δ and W + Δ, all float32 (n, columns); grid: that of the merged tensor."""
        error = stored - delta
        self.along += float(torch.dot(stored.view(-1), delta.view(-1)))
        self.energy += float(torch.dot(delta.view(-1), delta.view(-1)))
        self.error += float(torch.dot(error.view(-1), error.view(-1)))
        if self.basis is not None and self.flipped:
            self._folded = self._folded + error.T @ self.basis[row : row + len(error)]
        elif self.basis is not None:
            self._coherent += float((error @ self.basis).square_().sum())
        if self.noisy:
            self.noise += float((_variance(right, grid) * delta.square()).sum(dtype=torch.float64))

    def figures(self) -> dict[str, Figure]:
        """The figures by name; None where Δ is zero or something is not finite."""
        coherent = self._coherent + float(self._folded.square().sum())
        norm = _finite(self.energy**0.5) if self.energy >= 0 else None
        if not norm:
            return {"retention": None, "error_energy": None, "subspace_error": None, "delta_norm": norm}
        figures: dict[str, Figure] = {
            "retention": _finite(self.along / self.energy),
            "error_energy": _finite(self.error**0.5 / norm),
            "subspace_error": _finite(coherent**0.5 / norm) if self.basis is not None else None,
            "delta_norm": norm,
        }
        return figures | ({"sigma": _finite(self.noise**0.5 / self.energy)} if self.noisy else {})


def _basis(factor: Tensor) -> Tensor | None:
    """Orthonormal columns that span those of `factor` (in, rank); directions lost in float32 are left out."""
    if not bool(torch.isfinite(factor).all()):
        return None
    Q, R = torch.linalg.qr(factor)
    U, S, _ = torch.linalg.svd(R, full_matrices=False)
    lost = float(S.max()) * max(factor.shape) * torch.finfo(S.dtype).eps
    basis: Tensor = Q @ U[:, S.gt(lost)]
    return basis


def _variance(value: Tensor, grid: Grid) -> Tensor:
    """(value − low)·(high − value) between the neighbours on the grid; float32 is blind inside its own gaps: gap²/4."""
    half = grid.half_step(value)
    if grid.scale is None and grid.dtype == torch.float32:
        return half.square_()
    off = (value - grid.once(value).float()).abs_()
    return off * (2 * half - off).clamp_(min=0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
