"""The quantiser's scales: every block of a weight shares one number that its codes are multiplied by."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

E4M3_MAX = 448.0  # largest finite value, OCP 8-bit floating point specification
OVERFLOW = 464.0  # what lies beyond rounds to 480, which e4m3 has not (IEEE 754-2019 §7.4: judged as if the exponent had no end)


@dataclass(frozen=True, slots=True)
class BlockScales:
    """The scales of one weight, or of a stack of matrices that lie one below the other.

    values         (block rows, block columns)  float32
    height, width  of a block, in elements
    rows           of each matrix: the last block row ends with its matrix, however few rows it has left
    """

    values: torch.Tensor
    height: int
    width: int
    rows: int

    def multiply(self, exact: torch.Tensor, start: int) -> None:
        """Codes become values. exact  (n, columns)  float32, rows start … of one matrix, changed in place"""
        for piece, scale in self._pieces(exact, start):
            piece.mul_(scale)

    def divide(self, exact: torch.Tensor, start: int) -> None:
        """Values become what is rounded to a code."""
        for piece, scale in self._pieces(exact, start):
            piece.div_(scale)

    def _pieces(self, exact: torch.Tensor, start: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Runs of a slab's rows, and the scales that broadcast over each: all whole block rows of a matrix together, (n, height, columns),
        and the rows of a block that the slab or the matrix cuts."""
        count, columns = exact.shape
        if self.values.shape[1] == 1:
            yield exact, self.values[self.block_rows(start, count)]
            return
        done, block_rows = 0, -(-self.rows // self.height)
        while done < count:
            matrix, row = divmod(start + done, self.rows)
            left, first = min(count - done, self.rows - row), matrix * block_rows + row // self.height
            whole = 0 if row % self.height else left // self.height
            high = whole * self.height or min(left, self.height - row % self.height)
            scales = self.values[first : first + max(1, whole)].repeat_interleave(self.width, 1)[:, :columns]
            piece = exact[done : done + high]
            yield (piece.view(whole, self.height, columns), scales.unsqueeze(1)) if whole else (piece, scales)
            done += high

    def block_rows(self, start: int, count: int) -> torch.Tensor:
        """The block row of each of these rows."""
        row = torch.arange(start, start + count)
        return row.div(self.rows, rounding_mode="floor") * -(-self.rows // self.height) + row.remainder(self.rows) // self.height

    def largest(self, exact: torch.Tensor, start: int, found: torch.Tensor) -> None:
        """Fold the largest magnitude of every block into `found`, which has the shape of `values`."""
        columns, width = exact.shape[1], self.width
        whole = columns // width * width
        parts = [exact[:, :whole].view(len(exact), -1, width)] if whole else []
        parts += [exact[:, whole:].unsqueeze(1)] if whole < columns else []
        most = torch.cat([torch.maximum(part.amax(2), -part.amin(2)) for part in parts], 1)
        found.scatter_reduce_(0, self.block_rows(start, len(exact)).unsqueeze(1).expand_as(most), most, "amax")

    def across(self, chosen: torch.Tensor) -> "BlockScales":
        """Those of some block columns. chosen  bool, one per block column"""
        return replace(self, values=self.values[:, chosen])

    def doubtful(self, reach: torch.Tensor) -> torch.Tensor:
        """Blocks that may overflow when each number moves by up to `reach`: codes end at 448, so that 16 scales are free.

        Fifteen of the sixteen are used: the last one is a thousand times what float32 arithmetic adds to the reach.
        """
        return ~(reach <= (OVERFLOW - E4M3_MAX - 1) * self.values)

    def grown(self, largest: torch.Tensor) -> "BlockScales":
        """The scales on which these magnitudes fit: the same, doubled until nothing overflows.

        Twice the scale moves every code of its block down by one exponent and changes no value above e4m3's smallest ones, where
        amax/448 would move them all; and a power of two stays one. A scale of zero, which no doubling helps, is begun anew.
        """
        ratio = largest.double() / (OVERFLOW * self.values.double())
        mantissa, exponent = torch.frexp(ratio)
        doublings = torch.where(mantissa == 0.5, exponent - 1, exponent)
        doublings = torch.where(ratio.isfinite(), doublings, 0).clamp(min=0)
        new = torch.exp2(torch.ceil(torch.log2(largest.double() / E4M3_MAX)))
        begun = (self.values == 0) & (largest > 0) & largest.isfinite()
        return replace(self, values=torch.where(begun, new, torch.ldexp(self.values.double(), doublings)).float())
