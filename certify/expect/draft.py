"""What adapters make of one tensor, while it is being worked out."""

from dataclasses import dataclass, field

import torch

from certify.expect.expectation import Along, Expectation, Part, Region, columns_of, factors
from certify.inputs.adapter import AdapterTensor
from certify.inputs.stored import Stored

Rows = tuple[int, int]


@dataclass
class Draft:
    """parts: (rows of the matrix, or None for all of them; the delta). start: the adapter's own copy; snapshot: only saved, not trained.

    convolution: all axes but the first in a row      weight: what the user gave the adapter that replaces something here
    """

    parts: list[tuple[Rows | None, Part]] = field(default_factory=list)
    start: AdapterTensor | None = None
    snapshot: bool = False
    magnitude: AdapterTensor | None = None
    along: Along = "rows"
    tokens: tuple[int, ...] = ()
    token_rows: AdapterTensor | None = None
    convolution: bool = False
    weight: float = 1.0

    @property
    def plain(self) -> bool:
        """Low-rank deltas on all rows, and nothing else."""
        return not (self.start or self.magnitude or self.tokens or self.convolution) and all(rows is None for rows, _ in self.parts)

    @property
    def replacing(self) -> bool:
        return bool(self.start or self.magnitude or self.tokens)

    def joined(self, other: "Draft") -> str:
        """Takes in what another adapter makes of the same tensor; returns why that has no meaning, or nothing."""
        if self.replacing and other.replacing:
            return "two adapters replace this tensor, rows of it, or its magnitude"
        if (self.replacing and other.parts) or (other.replacing and self.parts):
            return "one adapter replaces this tensor, rows of it, or its magnitude, and another one adds a delta"
        self.parts += other.parts
        for name in ("start", "snapshot", "magnitude", "along", "tokens", "token_rows", "weight") if other.replacing else ():
            setattr(self, name, getattr(other, name))
        self.convolution |= other.convolution
        return ""

    def problem(self) -> str:
        """What cannot be combined within one tensor."""
        if self.replacing and self.weight != 1.0:
            return f"this tensor is replaced by an adapter of weight {self.weight}"
        if self.start and not self.snapshot and (self.parts or self.magnitude or self.tokens):
            return "one adapter replaces this tensor and a delta is added to it as well"
        if self.tokens and (self.parts or self.magnitude):
            return "rows of this tensor are replaced and a delta is added to it as well"
        if self.magnitude and (not self.parts or len(self.parts) > 1 or self.parts[0][0] is not None):
            return "a DoRA magnitude stands beside something else than one delta"
        return ""

    def expectation(self, start: Stored) -> Expectation:
        """The recipe. start: the base's tensor."""
        begun = self.start or start
        columns = columns_of(begun.shape, convolution=self.convolution)
        whole = (0, torch.Size(begun.shape).numel() // max(1, columns))
        by_rows: dict[Rows, list[Part]] = {}
        for rows, part in self.parts:
            by_rows.setdefault(rows or whole, []).append(part)
        regions = tuple(Region(first, last, tuple(parts)) for (first, last), parts in sorted(by_rows.items()))
        return Expectation(begun, columns, regions, self.magnitude, self.along, self.tokens, self.token_rows)


def alike(one: Draft | None, other: Draft | None) -> bool:
    """Whether two tied weights are changed in the same way: equal values, not equal names. Raises DamagedError where a file ends early."""
    if one is None or other is None:
        return one is other
    if len(one.parts) != len(other.parts) or one.tokens != other.tokens:
        return False
    pairs = [(one.start, other.start), (one.magnitude, other.magnitude), (one.token_rows, other.token_rows)]
    return all(_same(a, b) for a, b in pairs) and all(_same_delta(a[1], b[1]) for a, b in zip(one.parts, other.parts, strict=True))


def _same(one: AdapterTensor | None, other: AdapterTensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or torch.equal(one.load(), other.load())


def _same_delta(one: Part, other: Part) -> bool:
    """By their factors as the tensor is stored: the head's A is the embedding's B transposed."""
    if one is other:
        return True
    a, b = factors(one), factors(other)
    return a.scaling == b.scaling and torch.equal(a.left, b.left) and torch.equal(a.right, b.right)
