"""The directions in which rounding must leave no error: those that an adapter reads its inputs in."""

from dataclasses import dataclass, replace

import torch

LOST = 1e-12  # of the largest eigenvalue: a direction that its rows do not tell from the others in float32


@dataclass(frozen=True, slots=True)
class Span:
    """Orthonormal directions, common to some rows of a weight, and one more per row where its delta leaves them.

    rows     (k, columns)  float32, contiguous: the directions that rows are made of
    columns  (columns, k)  float32, contiguous: the same, as rows are held against them. A product takes half the time where it finds
             its second factor in this order
    own      (n, columns)  float32, of length one and orthogonal to the others; zero where nothing is left
    """

    rows: torch.Tensor
    columns: torch.Tensor
    own: torch.Tensor | None = None

    @classmethod
    def of_columns(cls, columns: torch.Tensor) -> "Span":
        """Of directions common to all rows. columns  (columns, k)  float32"""
        return cls(columns.T.contiguous(), columns)

    def of(self, vectors: slice) -> "Span":
        """The same for some of the rows."""
        return replace(self, own=None if self.own is None else self.own[vectors])

    def project(self, error: torch.Tensor) -> torch.Tensor:
        """Coordinates of each row. error  (n, columns) → (n, k), or (n, k + 1)"""
        common: torch.Tensor = error @ self.columns
        return common if self.own is None else torch.cat([common, (error * self.own).sum(1, keepdim=True)], 1)

    def carry(self, coordinates: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The rows that have these coordinates; `out` is overwritten and returned."""
        k = len(self.rows)
        torch.mm(coordinates[:, :k], self.rows, out=out)
        if self.own is not None:
            out.addcmul_(coordinates[:, k:], self.own)
        return out

    def elements(self, where: torch.Tensor) -> torch.Tensor:
        """Coordinates of a one in one column of each row. where  (n, 1)  int64 → (n, k), or (n, k + 1)"""
        common = self.columns[where.squeeze(1)]
        return common if self.own is None else torch.cat([common, self.own.gather(1, where)], 1)

    def weights(self) -> torch.Tensor:
        """The squared lengths of those coordinates, for every column: (columns,), or (n, columns)"""
        common = self.rows.square().sum(0)
        return common if self.own is None else self.own.square().add_(common)

    def completed(self, delta: torch.Tensor) -> tuple["Span", torch.Tensor]:
        """Made whole for deltas that leave it, and their coordinates: each row gets the direction of what is left of its own.

        delta  (n, columns)  float32      returns  the span and (n, k + 1)

        DoRA's delta is scaling · B · A times a factor, plus a share of the row of W itself: with this direction it lies in the span.
        """
        inside = delta @ self.columns
        rest = delta - inside @ self.rows
        length = torch.linalg.vector_norm(rest, dim=1, keepdim=True)
        own = rest / length.clamp_min(torch.finfo(torch.float32).tiny)
        return replace(self, own=own), torch.cat([inside, length], 1)


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
