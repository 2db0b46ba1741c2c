"""C5 of every recipe that is more than W + Δ on a matrix: experts, convolutions, DoRA. The judgement is that of `c5_modules`.

The tensor is seen as a matrix whose rows are outputs: those of a linear map or a convolution (its inputs are patches); of one expert after
the other. Where the module stores (in, out) the map is the transposed one: what it answers to is the same tensor, output by input, so that
the same bounds hold. Each row answers for itself, and one reading of the tensor is enough:

b = x·Wᵀ      m = x·Mᵀ      d = x·(T − W)ᵀ, T the recipe's value      u = g·(x·Wᵀ + Σ s·(x·Aᵀ)·Bᵀ): the path that an unmerged adapter takes,

in float32, g DoRA's gain. That PEFT's own layer is this recipe is held in float64, kind by kind (`certify.expect.witness`, C6). Half of x
mixes the rows of A, as in `c5_modules`; a bias and a replaced row have no inputs, and C4 compares them value by value.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from certify.checks.c5_modules import FAULTS, PROBES, Answers
from certify.expect.expectation import Expectation, factors
from certify.expect.target import Block
from certify.grid import Grid

MOST = 4  # experts whose A is mixed into the probes: the first ones


def composed_answers(expectation: Expectation, criterion: str) -> "ComposedAnswers | None":
    """None where there is nothing to run. Raises DamagedError if the adapter cannot be read."""
    if expectation.columns < 2 or not expectation.regions or expectation.tokens:
        return None
    return ComposedAnswers(expectation, criterion)


class ComposedAnswers(Answers):
    """The answers of one tensor's rows, added up block by block."""

    def __init__(self, expectation: Expectation, criterion: str) -> None:
        self.deltas, self.orientation, self.criterion, self.flipped = (), "out,in", criterion, False
        self.x = _probes(expectation)
        rows = expectation.rows
        self.d, self.b, self.m, self.u, self.exact = (torch.zeros(len(self.x), rows) for _ in range(5))
        self.low, self.high, self.expected, self.square = (torch.zeros(rows, dtype=torch.float64) for _ in range(4))
        self.faults, self.outside = torch.zeros(len(FAULTS), rows, dtype=torch.float64), torch.zeros(len(FAULTS), dtype=torch.int64)
        self._sizes = torch.zeros(rows, dtype=torch.float64)
        self._ranks = max(sum(2 * part.rank + 4 for part in region.parts) for region in expectation.regions) + 4  # the gain's own four

    def take(self, block: Block, merged: Tensor, grid: Grid) -> None:
        """Some rows of the tensor, as C4 reads them."""
        into = slice(block.row, block.row + len(merged))
        (W, change, own), M = block.parts(), merged.float()
        for answer, weight in ((self.b, W), (self.m, M), (self.exact, own), (self.d, change)):
            answer[:, into] += self.x @ weight.T
        self.u[:, into] += self._unmerged(block, W)
        self._reach(self.x, into, block, own, [W + factor * change for factor in FAULTS], grid)
        self._sizes[into] = self._added(block)

    def _unmerged(self, block: Block, W: Tensor) -> Tensor:
        path = self.x @ W.T
        for delta in block.deltas:
            path = path + (self.x @ delta.right.T) @ delta.left.T * delta.scaling
        if block.gain is None:
            return path
        if len(block.gain.value) == len(W):
            return path * block.gain.value.T.float()
        return self.x @ block.own().T  # the gain stands between the inputs and the map: there is no other path

    def _added(self, block: Block) -> Tensor:
        """‖w‖ of each row as the path adds it up."""
        own = block.base.double().norm(dim=1)
        size: Tensor = own.clone()
        for delta in block.deltas:
            size += (delta.left.norm(dim=1) * delta.right.norm()).double() * abs(delta.scaling)
        if block.gain is not None:
            scale = block.gain.value.abs()
            size = size * (scale.view(-1) if len(scale) == len(size) else scale.max()) + own
        return size

    def _size(self) -> Tensor:
        return self._sizes.clone()

    def _roundings(self) -> int:
        return self._ranks + self.x.shape[1]  # the norm behind a gain adds one more sum


def _probes(expectation: Expectation) -> Tensor:
    """(2·PROBES, columns) float32, each of length √columns, the same in every run."""
    A = torch.cat(list(_spans(expectation)))
    chance = torch.Generator().manual_seed(0)
    mixed = torch.randn((PROBES, len(A)), generator=chance) @ torch.nn.functional.normalize(A)
    x = torch.cat([mixed, torch.randn((PROBES, A.shape[1]), generator=chance)])
    return torch.nn.functional.normalize(x).mul_(A.shape[1] ** 0.5)


def _spans(expectation: Expectation) -> Iterator[Tensor]:
    """Rows that span what the deltas answer to."""
    for region in expectation.regions[:MOST]:
        for part in region.parts:
            yield factors(part).right
