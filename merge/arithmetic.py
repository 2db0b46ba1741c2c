"""What happens to one slab of one weight in float32, between its decoding and its one rounding. Pure; memory is the caller's."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch

from merge.encodings import BlockScales


class Applied(Protocol):
    """One step, ready to act on any slab."""

    def apply(self, exact: torch.Tensor, start: int) -> None:
        """Change rows start … of the weight in place.

        exact  (n, columns)  float32
        """


@dataclass(frozen=True, slots=True)
class Delta:
    """One addend, factored so that rows of the stored weight are rows of `left`.

        Δ[i:j] = scaling · left[i:j] · right

    left   (rows, rank)     float32, contiguous
    right  (rank, columns)  float32, contiguous
    at     row of the stored weight that takes the first row of Δ

    Source: Hu et al. 2021, arXiv:2106.09685.
    """

    left: torch.Tensor
    right: torch.Tensor
    scaling: float
    at: int = 0

    @classmethod
    def of(
        cls,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
        *,
        transposed: bool,
        columns: tuple[int, int] = (0, 1),
        rows: tuple[int, int] | None = None,
        at: int = 0,
    ) -> "Delta":
        """From a (rank, in, …) and b (out, columns, …), any float dtype; the fields are those of `operation.Part`."""
        first, step = columns
        a = a.flatten(1)
        b = b.flatten(1)[:, first : first + step * len(a) : step]
        left, right = (a.float().T, b.float().T) if transposed else (b.float(), a.float())
        return cls(left[slice(*rows) if rows else slice(None)].contiguous(), right.contiguous(), scaling, at)

    def apply(self, exact: torch.Tensor, start: int) -> None:
        low, high = max(start, self.at), min(start + len(exact), self.at + len(self.left))
        if low < high:
            exact[low - start : high - start].addmm_(self.left[low - self.at : high - self.at], self.right, alpha=self.scaling)


@dataclass(frozen=True, slots=True)
class Shifted:
    """scaling · value is added. value  (rows, columns)  float32"""

    value: torch.Tensor
    scaling: float

    def apply(self, exact: torch.Tensor, start: int) -> None:
        exact.add_(self.value[start : start + len(exact)], alpha=self.scaling)


@dataclass(frozen=True, slots=True)
class Placed:
    """Some rows take trained values. value  (count, columns)  float32"""

    value: torch.Tensor
    indices: tuple[int, ...]

    def apply(self, exact: torch.Tensor, start: int) -> None:
        for row, index in zip(self.value, self.indices, strict=True):
            if start <= index < start + len(exact):
                exact[index - start].copy_(row)


@dataclass(frozen=True, slots=True)
class Rescaled:
    """Every row, or every column, keeps the magnitude that the adapter learned for it: V = W + Δ becomes magnitude · V / ‖V‖₂.

    magnitude  one per stored row (axis 1) or column (axis 0)  float32
    norms      ‖V‖ per column, float64: known only once a first pass has seen every row; None for rows, which carry their own

    Source: Liu et al. 2024, arXiv:2402.09353. A direction of length zero has no value, and the result is not finite.
    """

    magnitude: torch.Tensor
    axis: int
    norms: torch.Tensor | None = None

    def apply(self, exact: torch.Tensor, start: int) -> None:
        if self.axis == 1:
            norms = torch.linalg.vector_norm(exact, dim=1, dtype=torch.float64)
            exact.mul_((self.magnitude[start : start + len(exact)] / norms).float().unsqueeze(1))
        else:
            assert self.norms is not None, "the first pass comes first"
            exact.mul_((self.magnitude / self.norms).float())

    def knowing(self, squares: torch.Tensor) -> "Rescaled":
        """The same with the column norms of the first pass. squares  (columns,)  float64, summed over every row"""
        return replace(self, norms=squares.sqrt())


def merge(exact: torch.Tensor, steps: tuple[Applied, ...], start: int) -> torch.Tensor:
    """Rows start … of a weight after every step, not yet rounded. exact  (n, columns)  float32, decoded; changed in place"""
    for step in steps:
        step.apply(exact, start)
    return exact


def squares(exact: torch.Tensor) -> torch.Tensor:
    """Σ over these rows of the squares, per column, in float64: the fold of a first pass."""
    return exact.double().square_().sum(0)


def reach(steps: tuple[Applied, ...], scales: BlockScales, columns: int) -> torch.Tensor | None:
    """How far the steps can move any number of each block: |Δ[i, j]| ≤ |scaling| · ‖left[i]‖ · ‖right[:, j]‖ (Cauchy, Schwarz), summed.

    Returns float32, of the shape of the scales; None where a step is no product, and only the numbers themselves can tell.
    """
    found = torch.zeros_like(scales.values)
    for step in steps:
        if not isinstance(step, Delta):
            return None
        tall, wide = torch.linalg.vector_norm(step.left, dim=1), torch.linalg.vector_norm(step.right, dim=0)
        rows = torch.zeros(len(found)).scatter_reduce_(0, scales.block_rows(step.at, len(tall)), tall, "amax")
        across = torch.zeros(found.shape[1]).scatter_reduce_(0, torch.arange(columns) // scales.width, wide, "amax")
        found += abs(step.scaling) * torch.outer(rows, across)
    return found
