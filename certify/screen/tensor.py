"""One tensor of base and merged, looked at once in blocks of rows: what was touched, how large the change is, how much of it was kept."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from certify.finding import Figure
from certify.inputs.dtypes import FLOATS
from certify.inputs.stored import Stored
from certify.screen.share import Gaps

BLOCK = 1 << 19  # elements per block; its float64 twin has 4 MiB


@dataclass(frozen=True, slots=True)
class Touch:
    """What was done to one tensor, as far as base and merged tell.

    share       of the elements, changed                    None where the bytes differ and the dtype is not one that we compute with
    rho         estimated ‖Δ‖/‖W‖                            None where nothing changed, or the change cannot be measured
    retention   predicted ⟨stored, Δ⟩/⟨Δ, Δ⟩                 None likewise
    not_finite  NaN and infinity where the base is finite; they are in no other figure
    rows, untouched_rows   rows (of the last axis), and those of them in which nothing changed
    """

    elements: int
    share: float | None
    rho: float | None = None
    retention: float | None = None
    not_finite: int = 0
    rows: int = 0
    untouched_rows: int = 0

    @property
    def touched(self) -> bool:
        return self.share is None or self.share > 0 or self.not_finite > 0

    def figures(self) -> dict[str, Figure]:
        """The same as JSON scalars, each name with the prefix `screen_`: they travel in a finding."""
        return {f"screen_{name}": value for name, value in asdict(self).items()}

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> Self | None:
        """The touch that `figures` holds; None where it holds none."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: figures[f"screen_{name}"] for name in names}) if "screen_elements" in figures else None


def look(base: Stored, merged: Stored) -> Touch | None:
    """One pair; None where shapes differ, and nothing can be said. Raises DamagedError where a file ends early.

    A pair of equal bytes is read once; a pair that differs is found out at the first differing block, and then read as numbers.
    """
    if base.shape != merged.shape:
        return None
    elements = base.entry.elements
    if base.dtype == merged.dtype and all(ours == theirs for ours, theirs in zip(base.raw(), merged.raw(), strict=True)):
        return Touch(elements, 0.0)
    if base.dtype not in FLOATS or merged.dtype not in FLOATS:
        return Touch(elements, None)
    tally = _Tally(FLOATS[merged.dtype])
    for ours, theirs in _rows(base, merged):
        tally.fold(ours, theirs)
    return tally.touch(elements)


@dataclass
class _Tally:
    """The sums of one tensor. converted: some value of the base is none of the merged dtype, so that changes are not all the merge's."""

    dtype: torch.dtype
    changed: int = 0
    not_finite: int = 0
    rows: int = 0
    untouched_rows: int = 0
    converted: bool = False
    added: float = 0.0
    size: float = 0.0

    def __post_init__(self) -> None:
        self._gaps = Gaps()

    def fold(self, base: Tensor, merged: Tensor) -> None:
        """One block (rows, columns), in the stored dtypes. The sums are float32: the sixth digit of ρ is nobody's concern."""
        W, M = base.float(), merged.float()
        ours = W if base.dtype == self.dtype else base.to(self.dtype).float()
        if not math.isfinite(_energy(W) + _energy(M) + _energy(ours)):
            known = torch.isfinite(W) & torch.isfinite(M) & torch.isfinite(ours)
            self.not_finite += int((~torch.isfinite(M) & torch.isfinite(ours)).sum())
            W, M, ours = (torch.where(known, side, 0.0) for side in (W, M, ours))
        different = ours != M
        self.changed += int(different.sum())
        self.rows += len(W)
        self.untouched_rows += int((~different.any(dim=1)).sum())
        self.converted |= ours is not W and bool((ours != W).any())
        self._gaps.fold(W, self.dtype)
        self.added += _energy(M - W)
        self.size += _energy(W)

    def touch(self, elements: int) -> Touch:
        counts = (self.not_finite, self.rows, self.untouched_rows)
        share = self.changed / elements
        if not self.changed or self.converted or not self.size or not self.added:
            return Touch(elements, share, None, None, *counts)
        sigma = self._gaps.sigma(share, self.added / elements)
        return Touch(elements, share, sigma / (self.size / elements) ** 0.5, min(1.0, self._gaps.retention(sigma)), *counts)


def _energy(block: Tensor) -> float:
    return float(torch.dot(block.view(-1), block.view(-1)))


def _rows(base: Stored, merged: Stored) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of whole rows; a scalar is a row of one, and the axes before the last one are rows all alike."""
    columns = base.shape[-1] if base.shape else 1
    step = max(1, BLOCK // max(1, columns)) * max(1, columns)
    for ours, theirs in zip(base.elements(step), merged.elements(step), strict=True):
        yield ours.view(-1, max(1, columns)), theirs.view(-1, max(1, columns))
