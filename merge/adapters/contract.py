"""What a variant says of the adapter's tensors: each is part of one contribution to one weight.

`names` are the names that the weight may have in the tree that the adapter was trained on; the base's own names decide among them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from merge.adapters.config import Settings
from merge.catalog import Tensor

PREFIX = "base_model.model."  # what PEFT puts before every module path; some writers leave it out
WRAPPED = "base_layer"  # what PEFT puts behind a module that it wrapped
WRAPPERS = (WRAPPED, "token_adapter")  # the second one between an embedding and its base layer, where rows are trained


@dataclass(frozen=True, slots=True)
class Addition:
    """scaling · B · A is to be added to the weight of a module.

    a  (rank, in_features, …)      b  (out_features, rank, …)
    embedding  an embedding's table was adapted: its rows are A's columns
    magnitude  DoRA's norms, one per output feature
    inside     of a module that PEFT wrapped as a whole, and calls itself
    """

    names: tuple[str, ...]
    a: Tensor
    b: Tensor
    scaling: float
    embedding: bool = False
    magnitude: Tensor | None = None
    inside: bool = False

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.a, self.b, self.magnitude) if self.magnitude else (self.a, self.b)


@dataclass(frozen=True, slots=True)
class Stacked:
    """One B · A per expert, for a parameter that holds them all.

    names  every parameter of the module that the configuration targets, of which this is the one at `depth`: PEFT wraps in the order in
           which the module registers them, so that the first lies deepest
    a      (experts · rank, in)   expert after expert      b  (out, rank · experts)
    """

    names: tuple[str, ...]
    depth: int
    a: Tensor
    b: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.a, self.b


@dataclass(frozen=True, slots=True)
class Single:
    """One trained tensor that says everything."""

    names: tuple[str, ...]
    value: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.value,)


@dataclass(frozen=True, slots=True)
class Addend(Single):
    """scaling · value is to be added to a bias."""

    scaling: float


@dataclass(frozen=True, slots=True)
class Replacement(Single):
    """A trained tensor takes the place of the base's: the value is absolute."""


@dataclass(frozen=True, slots=True)
class Snapshot(Single):
    """The base's embeddings as the training saw them, resized perhaps: they take the base's place before anything is added."""


@dataclass(frozen=True, slots=True)
class TokenRows(Single):
    """Rows of an embedding that were trained: row indices[i] becomes value[i]. twin: the configuration names what this is tied to."""

    indices: tuple[int, ...]
    twin: bool = False


@dataclass(frozen=True, slots=True)
class Again(Single):
    """What PEFT saves of a module that was trained whole, with bias="all" or beside a grown vocabulary: its values once more, and the
    base's own, which nothing needs."""

    trained: bool


Contribution = Addition | Stacked | Addend | Replacement | Snapshot | TokenRows | Again
Variant = Callable[[Settings, Mapping[str, Tensor]], Iterable[Contribution]]


def strip(name: str) -> str:
    """An adapter's tensor name without PEFT's prefix."""
    return name.removeprefix(PREFIX)


def unwrapped(path: str) -> str:
    """A module path without PEFT's wrappers."""
    return ".".join(step for step in path.split(".") if step not in WRAPPERS)


def with_suffix(tensors: Mapping[str, Tensor], suffix: str) -> Iterator[tuple[str, Tensor]]:
    """(module path, tensor) of every tensor whose name ends so."""
    for name, tensor in tensors.items():
        if name.endswith(suffix):
            yield strip(name).removesuffix(suffix), tensor
