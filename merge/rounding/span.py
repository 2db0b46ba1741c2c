"""The directions in which rounding must leave no error: those that an adapter reads its inputs in."""

from dataclasses import dataclass

import torch

LOST = 1e-12  # of the largest eigenvalue: a direction that its rows do not tell from the others in float32


@dataclass(frozen=True, slots=True)
class Span:
    """Orthonormal directions, common to some rows of a weight, and one more per row where its delta leaves them.

    basis  (columns, k)  float32      own  (n, columns)  float32, of length one and orthogonal to the basis; zero where nothing is left
    """

    basis: torch.Tensor
    own: torch.Tensor | None = None

    def of(self, rows: slice) -> "Span":
        """The same for some of the rows."""
        return Span(self.basis, None if self.own is None else self.own[rows])

    def project(self, error: torch.Tensor) -> torch.Tensor:
        """Coordinates of each row. error  (n, columns) → (n, k), or (n, k + 1)"""
        common: torch.Tensor = error @ self.basis
        return common if self.own is None else torch.cat([common, (error * self.own).sum(1, keepdim=True)], 1)

    def carry(self, coordinates: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The rows that have these coordinates; `out` is overwritten and returned."""
        k = self.basis.shape[1]
        torch.mm(coordinates[:, :k], self.basis.T, out=out)
        if self.own is not None:
            out.addcmul_(coordinates[:, k:], self.own)
        return out


def basis(directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal columns Q that span some rows, and the rows in them.

    directions  (rank, columns)  float32      returns  (columns, k) and (rank, k), float32: directions = coordinates · Qᵀ

    By the eigenvectors of the rows' Gram matrix in float64, each row at length one first: cheap where the rank is small.
    """
    rows = directions.double()
    lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min_(torch.finfo(torch.float32).tiny)
    values, vectors = torch.linalg.eigh(rows.div_(lengths) @ rows.T)
    kept = values > values.max().clamp_min(0.0) * LOST
    values, vectors = values[kept], vectors[:, kept]
    found: torch.Tensor = rows.T @ (vectors * values.rsqrt())
    return found.float().contiguous(), (lengths * vectors * values.sqrt()).float()


def completed(common: torch.Tensor, delta: torch.Tensor) -> tuple[Span, torch.Tensor]:
    """A basis made whole for deltas that leave it, and their coordinates: each row gets the direction of what is left of its own.

    common  (columns, k)      delta  (n, columns)  float32      returns  the span and (n, k + 1)

    DoRA's delta is scaling · B · A times a factor, plus a share of the row of W itself: with this direction it lies in the span.
    """
    inside = delta @ common
    rest = delta - inside @ common.T
    length = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
    return Span(common, rest / length.clamp_min(torch.finfo(torch.float32).tiny)), torch.cat([inside, length], 1)
