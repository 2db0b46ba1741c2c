"""The shapes of the twin's tensors: those that transformers gives the small configuration, and what follows from them for all others. Pure.

A dimension is known by its place where transformers knows the parameter; else by its length, within the parameter that the tensor belongs
to, then within the whole checkpoint.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from merge.catalog import Tensor
from merge.encodings import Scheme
from merge.nametable import NameTable, Weight

Shape = tuple[int, ...]
Lengths = dict[int, int]  # of a real dimension → of the twin's
KEPT = 64  # lengths up to this one are kept where nothing is known about them


@dataclass
class Shapes:
    """The twin's shapes.

    real, small  parameter → its shape, by the real configuration and by the small one; both empty where transformers knows neither
    factor       what lengths are divided by where nothing else is known
    """

    table: NameTable
    real: Mapping[str, Shape]
    small: Mapping[str, Shape]
    factor: int
    found: dict[str, Shape] = field(default_factory=dict)
    lengths: Lengths = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def base(self, tensors: Mapping[str, Tensor], scheme: Scheme | None, small_scheme: Scheme | None) -> None:
        """Settle every tensor of the checkpoint."""
        scales = scheme.scales(tensors) if scheme else {}
        companions = scheme.companions(tensors, scales) if scheme else frozenset()
        weights = {weight.key: weight for weight in self.table.weights}
        left = []
        for name, tensor in tensors.items():
            shape = self._known(weights.get(name), tensor.shape)
            if name in companions:
                continue
            if shape is None:
                left.append(tensor)
            else:
                self._settle(tensor, shape)
        self._settle_unknown(left)
        for name, scale in scales.items():
            assert scheme is not None and small_scheme is not None, "there are scales"  # noqa: PT018
            block = _block(scheme, small_scheme, (scale.height, scale.width), tensors[name].shape)
            self.found[scale.tensor.name] = _scales(
                tensors[name].shape, (scale.height, scale.width), self.found[name], block, scale.tensor.shape
            )
        self.found |= {name: tensors[name].shape for name in companions if name not in self.found}

    def around(self, names: Iterable[str], tensors: Mapping[str, Tensor]) -> Lengths:
        """The lengths in the weights of these names, as adapters spell them."""
        lengths: Lengths = {}
        for name in names:
            alias = self.table.aliases.get(name)
            if alias and alias.parameter in self.real:
                real, small = self.real[alias.parameter], self.small[alias.parameter]
                if alias.piece:
                    lengths |= {n // alias.piece.parts: m // alias.piece.parts for n, m in zip(real, small, strict=True)}
                lengths |= dict(zip(real, small, strict=True))
            for key in {name, alias.renamed if alias else name} & tensors.keys():
                lengths |= dict(zip(tensors[key].shape, self.found[key], strict=True))
        return lengths

    def _settle(self, tensor: Tensor, shape: Shape) -> None:
        if _pattern(tensor.shape) != _pattern(shape):
            self.problems.append(f"{tensor} would become {shape}")
        self.found[tensor.name] = shape
        for length, cut in zip(tensor.shape, shape, strict=True):
            self.lengths.setdefault(length, cut)

    def _known(self, weight: Weight | None, shape: Shape) -> Shape | None:
        """By the place of each dimension in the parameter that the tensor fills."""
        real = self.real.get(weight.parameter) if weight else None
        if weight is None or real is None:
            return None
        small = self.small[weight.parameter]
        if weight.piece:
            parts = weight.piece.parts
            real, small = (real[1] // parts, *real[2:]), (small[1] // parts, *small[2:])
        if shape == real and weight.flipped is not True:
            return small
        if shape == (*real[:-2], *real[:-3:-1]):
            return (*small[:-2], *small[:-3:-1])
        lengths = dict(zip(real, small, strict=True))
        return tuple(lengths[n] for n in shape) if lengths.keys() >= set(shape) else None

    def _settle_unknown(self, tensors: list[Tensor]) -> None:
        """As a tensor of the same ending and shape became, such as the same module of another layer; else length by length."""
        like = {}
        for weight in self.table.weights:
            if weight.key in self.found and weight.parameter in self.real:
                like[_ending(weight.key)] = weight
        if not self.real:
            self._invent(tensors)
        for tensor in tensors:
            shape = self._known(like.get(_ending(tensor.name)), tensor.shape)
            self._settle(tensor, shape or tuple(self.length(n) for n in tensor.shape))

    def length(self, length: int) -> int:
        """Of a dimension that no place explains: as elsewhere, twice or four times one from elsewhere, or kept."""
        for times in (1, 2, 4):
            if length % times == 0 and length // times in self.lengths:
                return times * self.lengths[length // times]
        return length

    def _invent(self, tensors: list[Tensor]) -> None:
        """An architecture that nobody knows: distinct lengths become distinct smaller ones, in their order."""
        last = 0
        for length in sorted({n for tensor in tensors for n in tensor.shape}):
            last = length if length <= KEPT else max(-(-length // self.factor), last + 2)
            self.lengths[length] = last


def _pattern(shape: Shape) -> tuple[int, ...]:
    """Which dimensions are equal."""
    return tuple(shape.index(length) for length in shape)


def _ending(name: str) -> str:
    """The module's last two steps and the leaf, without numbers."""
    return ".".join([step for step in name.split(".") if not step.isdigit()][-3:])


def _block(scheme: Scheme, small: Scheme, block: tuple[int, int], shape: Shape) -> tuple[int, int]:
    """The twin's block for a weight whose own is this one; 0 for all rows or all columns."""
    pairs = zip(scheme.blocks, small.blocks, strict=True)
    return next(other for own, other in pairs if (own[0] or shape[-2], own[1] or shape[-1]) == block)


def _scales(weight: Shape, block: tuple[int, int], small: Shape, small_block: tuple[int, int], stored: Shape) -> Shape:
    """The shape of the scales of one weight, written as the real one is: a place of its grid each, or without those that are 1."""
    grid = (*weight[:-2], *(-(-n // size) for n, size in zip(weight[-2:], block, strict=True)))
    cut = (*small[:-2], *(-(-n // size) if size else 1 for n, size in zip(small[-2:], small_block, strict=True)))
    if len(stored) == len(grid):
        return cut
    many = [m for n, m in zip(grid, cut, strict=True) if n != 1]
    return tuple(many.pop(0) if n != 1 else 1 for n in stored)
