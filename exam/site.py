"""One tensor of a checkpoint at which faults are planted, and what belongs there."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

U = 2.0**-24  # unit roundoff of float32
TINY = 2.0**-126  # the smallest normal float32: what lies below may be flushed to zero
Role = Literal["adapted", "silent", "carried", "replaced"]


@dataclass(frozen=True, eq=False)
class Site:
    """A tensor as its module sees it: a matrix is (out, in), however it is stored.

    role   adapted: W + scaling·B·A belongs here; silent: so it does, but B is zero and no bit may change; carried: W itself, untouched;
           replaced: the adapter's own tensor
    kind   which module it is, in plain words           key  its name on disk
    W      base, in the stored dtype                     A (rank, in), B (out, rank)  float32
    other  W of the nearest tensor of the same shape     others  its A and B, if it is adapted
    """

    role: Role
    kind: str
    key: str
    W: Tensor
    sound: Tensor
    A: Tensor
    B: Tensor
    scaling: float
    other: Tensor
    others: tuple[Tensor, Tensor]

    @property
    def rank(self) -> int:
        return self.A.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.W.dtype

    def delta(self, factor: float = 1.0) -> Tensor:
        """float32."""
        return self.scaling * factor * (self.B @ self.A)

    def merge(self, delta: Tensor, base: Tensor | None = None) -> Tensor:
        """One rounding of base + delta; both may have any dtype."""
        return ((self.W if base is None else base).float() + delta.float()).to(self.dtype)

    def elsewhere(self) -> Tensor:
        """The delta of the other tensor, float32."""
        A, B = self.others
        return self.scaling * (B @ A)

    def right(self, merged: Tensor) -> bool:
        """Whether every element is one that some float32 merge stores too: then nothing is wrong, whatever was planted.

        v = W + s·B·A in float64; any order of the r + 1 terms, up to six roundings beyond the additions (two products, two casts, two
        covers) is within e = (r + 6)·u·(|W| + |s|·‖Bᵢ‖·‖Aⱼ‖) + (r + 8)·2⁻¹²⁶·max(1, |s|) of it (Higham §3.1), and rounding is monotone.
        """
        if self.role != "adapted":
            return False
        W, s = self.W.double(), self.scaling
        v = W + s * (self.B.double() @ self.A.double())
        size = W.abs() + abs(s) * torch.outer(self.B.double().norm(dim=1), self.A.double().norm(dim=0))
        e = (self.rank + 6) * U * size + (self.rank + 8) * TINY * max(1.0, abs(s))
        low, high = ((v - e).float().to(self.dtype), (v + e).float().to(self.dtype))
        return bool(((low <= merged) & (merged <= high)).all())


def same_bits(one: Tensor, other: Tensor) -> bool:
    """NaN equals NaN, and −0 is not 0."""
    return one.shape == other.shape and torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
