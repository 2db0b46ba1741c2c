"""Which disk tensors fill a parameter, and how they are put together: alone, one per expert, or by transformers' own conversion."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import Concatenate, MergeModulelist

from certify.errors import NotInterpretedError
from certify.expect.places import Places


@dataclass(frozen=True, slots=True)
class Filling:
    """One parameter's disk tensors.

    keys       all of them
    experts    per expert its keys, which follow each other along the rows; empty where it is no stack
    converter  transformers' conversion from several tensors (pattern, key) to this parameter; None where none is needed
    """

    keys: tuple[str, ...]
    experts: tuple[tuple[str, ...], ...] = ()
    converter: Any = None
    patterns: tuple[str, ...] = ()

    def of_expert(self, number: int) -> tuple[str, ...]:
        """Its keys in a stack, none behind the last; all keys where they are no stack."""
        if not self.experts:
            return self.keys
        return self.experts[number] if number < len(self.experts) else ()


class Layout(Places):
    """The places of a checkpoint, seen from the model: parameter or buffer → filling."""

    def __init__(self, model: Any, disk_keys: Iterable[str]) -> None:
        self._patterns: dict[str, str | None] = {}
        super().__init__(model, disk_keys)
        by_parameter: dict[str, list[str]] = {}
        for place in self.all.values():
            by_parameter.setdefault(place.parameter, []).append(place.key)
        self.fillings = {parameter: self._filling(keys) for parameter, keys in by_parameter.items()}

    def filling(self, parameter: str) -> Filling | None:
        """Of a parameter, or of the one that it is tied to."""
        return self.fillings.get(parameter) or self.fillings.get(self._source.get(parameter, ""))

    def convert(self, parameter: str, filling: Filling, read: Callable[[str], Tensor]) -> Tensor:
        """The parameter as transformers' loader makes it. Raises NotInterpretedError where the conversion gives something else."""
        converter = copy.deepcopy(filling.converter)
        converter.collected_tensors.clear()
        for pattern, key in zip(filling.patterns, filling.keys, strict=True):
            converter.add_tensor(parameter, key, pattern, read(key))
        made = converter.convert(parameter, model=self._model, config=self._model.config)
        value = made.get(parameter)
        value = value[0] if isinstance(value, list) else value
        if not isinstance(value, torch.Tensor):
            raise NotInterpretedError(f"the conversion of {filling.keys[0]} does not give {parameter}")
        return value

    def _meet(self, key: str) -> tuple[str, str, str | None]:
        met = super()._meet(key)
        self._patterns[key] = met[2]
        return met

    def _filling(self, keys: list[str]) -> Filling:
        patterns = [self._patterns[key] for key in keys]
        if patterns[0] is None:
            return Filling((keys[0],))
        converter = next(c for c in self._converters if patterns[0] in c.source_patterns)
        steps = [(type(step), getattr(step, "dim", None)) for step in converter.operations]
        if steps in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)]):
            parts = [[key for key, of in zip(keys, patterns, strict=True) if of == pattern] for pattern in converter.source_patterns]
            self._refuse_gaps(keys[0], [len(part) for part in parts])
            return Filling(tuple(keys), tuple(zip(*parts, strict=True)))
        return Filling(tuple(keys), converter=converter, patterns=tuple(str(pattern) for pattern in patterns))

    def _refuse_gaps(self, key: str, found: list[int]) -> None:
        """Experts are numbered by their order: where one is missing, the next would stand in its place."""
        parameter = self.all[key].parameter
        experts = len(self._parameters[parameter])
        if any(count != experts for count in found):
            told = " and ".join(str(count) for count in found)
            raise NotInterpretedError(f"{parameter} is a stack of {experts} experts, of which the base holds {told} ({key} is the first)")
