"""C5: each adapted module, run on inputs that excite the adapter, answers as base + unmerged adapter does, up to the declared rounding.

x   probes (n, in): half of them random mixtures of the rows of A, the inputs that the adapter answers to; half plain noise
b   answer of the base        m  of the merged weights        u  of base + PEFT's unmerged layer        all float32, (n, out)
d   the adapter's own answer: PEFT's unmerged layer without a base under it, u − b free of cancellation

The plain distance of m and u is the noise of storage, and blind below ‖Δ‖/‖W‖ ≈ 1e-2. The slope of the answer along d is not:

    slope = ⟨m − b, d⟩ / ⟨d, d⟩        of the module, and of each of its outputs

It is not compared with 1, since a right rounding loses part of small deltas, but with what right roundings can reach.
⟨m − b, d⟩ = ⟨M − W, C⟩ with C = dᵀx, which is linear in every stored element. Each element of a right merge lies in its interval
[low, high] of `certify.bounds`, so that

    Σ min(C·(low − W), C·(high − W))  ≤  ⟨m − b, d⟩  ≤  Σ max(C·(low − W), C·(high − W)),

which is one point, the slope of the once-rounded reference, but for the elements that have two right values. To this comes the noise of
the float32 forward: κ·u·‖x‖·‖w‖ for an output with weights w (Higham §3.1), u = 2⁻²⁴; κ is measured in this module, as the largest
difference between PEFT's answer and the answer of W + Δ added up in float32, and at least 1; twice, since two answers are subtracted.

Decidable only if the base alone would fail the same test, and so would the smallest fault that this check claims to see, a delta one per
cent off, where that is no right merge as well: its slope must lie outside by the noise of one more forward, which would measure it.
Otherwise `undecided`: outputs cannot tell, and C4 decides.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from certify.bounds import U32, Delta
from certify.errors import CertifyError
from certify.expect.expectation import Part, factors
from certify.expect.oracle import hold_formula, shape_class, unmerged
from certify.expect.place import Orientation
from certify.expect.target import Block
from certify.finding import Figure, Finding, Outcome
from certify.grid import Grid

CODE = "C5"
TITLE = "adapted modules answer as base + unmerged adapter"
PROBES = 8  # of each kind
FAULTS = (0.99, 1.01)  # × Δ, the smallest that are claimed to be seen


def module_answers(parts: Sequence[Part], criterion: str) -> "Answers":
    """One touched matrix, to be run as its module while its rows are read. Memory: the thin factors, eight answers of 16 probes, a block.

    Raises DamagedError if the adapter cannot be read, CertifyError where PEFT's layer is not what the formula says.
    """
    return answers([factors(part) for part in parts], parts[0].orientation, criterion)


def answers(deltas: Sequence[Delta], orientation: Orientation, criterion: str) -> "Answers":
    """The same for deltas from anywhere."""
    height, width = len(deltas[0].left), deltas[0].right.shape[1]
    out, into = (height, width) if orientation == "out,in" else (width, height)
    hold_formula(orientation, shape_class(out, into), tuple(d.rank for d in deltas), tuple(d.scaling for d in deltas))
    return Answers(deltas, orientation, criterion)


def probes(deltas: Sequence[Delta], orientation: Orientation) -> Tensor:
    """(2·PROBES, in) float32, each of length √in, the same in every run."""
    A = torch.cat([d.right if orientation == "out,in" else d.left.T for d in deltas])
    chance = torch.Generator().manual_seed(0)
    mixed = torch.randn((PROBES, len(A)), generator=chance) @ torch.nn.functional.normalize(A)
    x = torch.cat([mixed, torch.randn((PROBES, A.shape[1]), generator=chance)])
    return torch.nn.functional.normalize(x).mul_(A.shape[1] ** 0.5)


class Answers:
    """The answers of one module, added up block by block.

    low, high, expected  bounds of ⟨m − b, d⟩ and its reference, per output, float64
    faults, outside      per entry of FAULTS: the same of the faulty merge, and how many of its elements no right merge has
    """

    def __init__(self, deltas: Sequence[Delta], orientation: Orientation, criterion: str) -> None:
        self.deltas, self.orientation, self.criterion = deltas, orientation, criterion
        self.flipped = orientation == "in,out"
        self.x = probes(deltas, orientation)
        out = deltas[0].right.shape[1] if self.flipped else len(deltas[0].left)
        self.d = self._alone(out)
        self.b, self.m, self.u, self.exact = (torch.zeros(len(self.x), out) for _ in range(4))
        self.low, self.high, self.expected, self.square = (torch.zeros(out, dtype=torch.float64) for _ in range(4))
        self.faults, self.outside = torch.zeros(len(FAULTS), out, dtype=torch.float64), torch.zeros(len(FAULTS), dtype=torch.int64)

    def _alone(self, out: int) -> Tensor:
        """d: PEFT's layer over a weight of zeros, expanded from one element."""
        shape = (self.x.shape[1], out) if self.flipped else (out, self.x.shape[1])
        return unmerged(self.x, torch.zeros(1, 1).expand(shape), self.deltas, self.orientation)

    def take(self, block: Block, merged: Tensor, grid: Grid) -> None:
        """Some rows of the stored tensor, as C4 reads them: outputs of a Linear, inputs of a Conv1D."""
        here = slice(block.row, block.row + len(merged))
        x, into = (self.x[:, here], slice(None)) if self.flipped else (self.x, here)
        W, M = block.base.float(), merged.float()
        added = torch.stack([delta.value() for delta in block.deltas]).sum(0)
        exact = W + added
        for answer, weight in ((self.b, W), (self.m, M), (self.exact, exact)):
            answer[:, into] += x @ (weight if self.flipped else weight.T)
        self.u[:, into] += unmerged(x, W, block.deltas, self.orientation)
        self._reach(x, into, block, exact, [W + factor * added for factor in FAULTS], grid)

    def _reach(self, x: Tensor, into: slice, block: Block, own: Tensor, faulty: Sequence[Tensor], grid: Grid) -> None:
        """What right roundings of these rows, and faulty ones, can add to ⟨m − b, d⟩, output by output."""
        x64, d = x.double(), self.d[:, into].double()
        C, along = (x64.T @ d, 0) if self.flipped else (d.T @ x64, 1)
        W, right = block.base.double(), block.bound(grid, self.criterion)
        low = grid.finite(torch.stack([least for least, _ in right.intervals]).amin(0)).sub_(W).mul_(C)
        high = grid.finite(torch.stack([most for _, most in right.intervals]).amax(0)).sub_(W).mul_(C)
        self.low[into] += torch.minimum(low, high).sum(along)
        self.high[into] += torch.maximum(low, high).sum(along)
        self.expected[into] += (grid.once(own).double() - W).mul_(C).sum(along)
        self.square[into] += W.square().sum(along)
        for number, value in enumerate(faulty):
            merge = grid.once(value).double()
            self.faults[number, into] += (merge - W).mul_(C).sum(along)
            self.outside[number] += (~right.holds(merge)).sum()

    def finding(self, subject: str) -> Finding:
        """The judgement."""
        d = self.d.double()
        got, energy = ((self.m - self.b).double() * d).sum(0), d.square().sum(0)
        room = self._noise(energy)
        low, high = self.low - room, self.high + room
        wrong = ~((low <= got) & (got <= high))
        whole = float(energy.sum())
        figures = self._figures(got, room, int(wrong.sum()), whole)
        if not math.isfinite(whole) or not bool(torch.isfinite(self.b).all()):
            return Finding(CODE, subject, Outcome.UNDECIDED, "the answers of base or adapter are not finite", figures)
        if not bool(low.sum() <= got.sum() <= high.sum()) or bool(wrong.any()):
            return Finding(CODE, subject, Outcome.FAILED, self._sentence(figures), figures)
        if bool(low.sum() <= 0 <= high.sum()):
            why = f"the base alone would pass: slopes {figures['slope_low']} … {figures['slope_high']} are right"
            return Finding(CODE, subject, Outcome.UNDECIDED, why, figures)
        if hidden := [factor for number, factor in enumerate(FAULTS) if self._hides(number, low - room, high + room)]:
            why = f"a delta × {hidden[0]} would pass: slopes {figures['slope_low']} … {figures['slope_high']} are right"
            return Finding(CODE, subject, Outcome.UNDECIDED, why, figures)
        return Finding(CODE, subject, Outcome.PASSED, figures=figures)

    def _hides(self, number: int, low: Tensor, high: Tensor) -> bool:
        """Whether a merge that is wrong could be measured as a right one. low, high: the bounds, float32's noise in them twice."""
        off = self.faults[number]
        return bool(self.outside[number] > 0 and ((low <= off) & (off <= high)).all() and low.sum() <= off.sum() <= high.sum())

    def _noise(self, energy: Tensor) -> Tensor:
        """What float32 may put into ⟨m − b, d⟩, per output (Cauchy–Schwarz over the probes); checks the link from formula to PEFT."""
        scale = self._size().mul_(U32).clamp_(min=torch.finfo(torch.float32).tiny) * self.x.norm(dim=1, keepdim=True).double()
        self.kappa = float(((self.u - self.exact).double().abs() / scale).max().nan_to_num(posinf=0))
        most = 2 * (self.x.shape[1] + self._roundings())  # Higham §3.1, both answers
        if self.kappa > most:
            raise CertifyError(f"PEFT's unmerged answer is {self.kappa:.3g} roundings from that of W + Δ; {most} were possible")
        noise: Tensor = scale.norm(dim=0) * energy.sqrt() * (2 * max(1.0, self.kappa))
        return noise

    def _size(self) -> Tensor:
        """Of each output's weights, as float32 adds them up."""
        size = self.square.sqrt()
        for delta in self.deltas:
            a, b = (delta.left, delta.right.norm(dim=0)) if self.flipped else (delta.right, delta.left.norm(dim=1))
            size += (b * a.norm()).double() * abs(delta.scaling)
        return size

    def _roundings(self) -> int:
        """Of the adapter's own path, at most."""
        return sum(2 * delta.rank + 4 for delta in self.deltas)

    def _figures(self, got: Tensor, room: Tensor, wrong: int, whole: float) -> dict[str, Figure]:
        def slope(value: Tensor) -> float | None:
            ratio = float(value.sum()) / whole if whole > 0 else math.nan
            return float(f"{ratio:.5g}") if math.isfinite(ratio) else None

        low, high = self.low - room, self.high + room
        undecided = int(((low <= 0) & (high >= 0)).sum())
        return {
            "slope": slope(got), "slope_expected": slope(self.expected), "slope_low": slope(low), "slope_high": slope(high),
            "outputs": len(got), "outputs_wrong": wrong, "outputs_undecided": undecided, "float32_noise": slope(room),
            "distance": self._distance(self.m), "base_distance": self._distance(self.b),
        }  # fmt: skip

    def _distance(self, answer: Tensor) -> float | None:
        """‖answer − u‖ / ‖u‖ of outputs rounded to bf16, as people compare them; the base's own tells what that is worth."""
        u = self.u.bfloat16().float()
        distance = float((answer.bfloat16().float() - u).norm() / u.norm())
        return float(f"{distance:.3g}") if math.isfinite(distance) else None

    @staticmethod
    def _sentence(figures: dict[str, Figure]) -> str:
        return (
            f"the module answers to {figures['slope']} of the adapter's change; a right merge answers to {figures['slope_expected']} "
            f"[{figures['slope_low']}, {figures['slope_high']}]; {figures['outputs_wrong']:,} of {figures['outputs']:,} outputs are wrong"
        )
