"""What a variant says of the adapter's tensors: each is part of one contribution to one weight."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from merge.adapters.config import Settings
from merge.catalog import Tensor

PREFIX = "base_model.model."  # what PEFT puts before every module path; some writers leave it out


@dataclass(frozen=True, slots=True)
class Addition:
    """scaling · B · A is to be added to a weight.

    weight  name of the weight as the adapter spells it, without prefix
    a       (rank, in_features)      b  (out_features, rank)
    """

    weight: str
    a: Tensor
    b: Tensor
    scaling: float

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.a, self.b


@dataclass(frozen=True, slots=True)
class Replacement:
    """A trained tensor takes the place of the base's: the value is absolute."""

    weight: str
    value: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.value,)


Contribution = Addition | Replacement
Variant = Callable[[Settings, Mapping[str, Tensor]], Iterable[Contribution]]


def strip(name: str) -> str:
    """An adapter's tensor name without PEFT's prefix."""
    return name.removeprefix(PREFIX)


def with_suffix(tensors: Mapping[str, Tensor], suffix: str) -> Iterator[tuple[str, Tensor]]:
    """(module path, tensor) of every tensor whose name ends so."""
    for name, tensor in tensors.items():
        if name.endswith(suffix):
            yield strip(name).removesuffix(suffix), tensor
