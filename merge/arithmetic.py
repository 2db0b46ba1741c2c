"""One slab of one weight: decode, add every delta in float32, round once, encode. Pure; memory is the caller's."""

from dataclasses import dataclass

import torch

from merge import rounding


@dataclass(frozen=True, slots=True)
class Delta:
    """One addend, factored so that rows of the stored weight are rows of `left`.

        Δ[i:j] = scaling · left[i:j] · right

    left   (rows, rank)     float32, contiguous
    right  (rank, columns)  float32, contiguous
    """

    left: torch.Tensor
    right: torch.Tensor
    scaling: float

    @classmethod
    def of(cls, a: torch.Tensor, b: torch.Tensor, scaling: float, *, transposed: bool) -> "Delta":
        """From a (rank, in) and b (out, rank), any float dtype; `transposed` for weights stored (in, out)."""
        if transposed:
            return cls(a.float().T.contiguous(), b.float().T.contiguous(), scaling)
        return cls(b.float(), a.float(), scaling)


def merge(stored: torch.Tensor, deltas: tuple[Delta, ...], rows: slice, exact: torch.Tensor, out: torch.Tensor) -> bool:
    """W + Σ scaling · B · A for some rows; False if a result is not finite.

    stored  (n, columns)  the base's rows, in its dtype
    exact   (n, columns)  float32 work space, overwritten
    out     (n, columns)  the output's dtype, overwritten; may share memory with `stored`
    """
    exact.copy_(stored)
    for delta in deltas:
        exact.addmm_(delta.left[rows], delta.right, alpha=delta.scaling)
    return rounding.nearest(exact, out)


def convert(stored: torch.Tensor, exact: torch.Tensor, out: torch.Tensor) -> bool:
    """The same numbers in another dtype, rounded once; False if a result is not finite."""
    exact.copy_(stored)
    return rounding.nearest(exact, out)
