"""Which disk tensor a module's weight is. The names are pushed through transformers' own renaming tables and joined there.

transformers renames and fuses while it loads, and adapters of an older release carry older names. Both sides go through the same
tables; they meet at the parameter, or, for fused experts, at the name that is renamed but not yet fused.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    apply_converters,
    apply_renamings,
    dot_natural_key,
    rename_source_key,
)
from transformers.pytorch_utils import Conv1D

Orientation = Literal["out,in", "in,out"]


@dataclass(frozen=True, slots=True)
class Place:
    """One disk tensor that a module owns.

    key          its name on disk        parameter  the in-memory parameter that it fills
    renamed      its name after renaming, before fusion
    orientation  how its module stores a matrix, from the module's class; None where it is no linear map
    fused        several disk tensors fill the parameter (one per expert)
    tied         the parameter shares its storage with another one
    """

    key: str
    parameter: str
    renamed: str
    orientation: Orientation | None
    fused: bool
    tied: bool

    def paths(self) -> set[str]:
        """Every module path that means this tensor: what `target_modules` may have been matched with."""
        names = {self.key, self.renamed} | (set() if self.fused else {self.parameter})
        return {name.removesuffix(".weight") for name in names if name.endswith(".weight")}


class Places:
    """The disk tensors of one checkpoint, found by any of their names."""

    def __init__(self, model: Any, disk_keys: Iterable[str]) -> None:
        transforms = get_model_conversion_mapping(model)  # they keep state: one fresh set per checkpoint
        self._model = model
        self._prefix: str = model.base_model_prefix
        self._renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
        self._converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
        self._parameters = model.state_dict()
        self._source = dict(model.all_tied_weights_keys)
        self.all: dict[str, Place] = {}
        for key in sorted(disk_keys, key=dot_natural_key):  # the loader's order: a renaming may wait for an earlier key
            if (place := self._place(key)) is not None:
                self.all[key] = place
        self._by_parameter = {place.parameter: place for place in self.all.values() if not place.fused}
        self._by_renamed = {place.renamed: place for place in self.all.values()}

    def find(self, name: str) -> Place | None:
        """The disk tensor behind a weight name of an adapter; a tied weight is found at the one that it shares."""
        parameter, renamed, _ = self._meet(name)
        found = self._by_parameter.get(parameter) or self._by_renamed.get(renamed)
        return found or self._by_parameter.get(self._source.get(parameter, ""))

    def of_parameter(self, parameter: str) -> Place | None:
        """The disk tensor that fills a parameter on its own."""
        return self._by_parameter.get(parameter)

    def _place(self, key: str) -> Place | None:
        parameter, renamed, pattern = self._meet(key)
        if parameter not in self._parameters:
            return None
        tied = parameter in self._source or parameter in self._source.values()
        return Place(key, parameter, renamed, self._orientation(parameter, pattern), pattern is not None, tied)

    def _meet(self, key: str) -> tuple[str, str, str | None]:
        """(parameter, renamed but not fused, pattern of the fusion if there is one)."""
        parameter, pattern = rename_source_key(key, self._renamings, self._converters, self._prefix, self._parameters)
        if parameter not in self._parameters and key in self._parameters:  # the loader's own second try
            parameter, pattern = rename_source_key(key, [], [], self._prefix, self._parameters)
            return parameter, parameter, pattern
        renamed = apply_renamings(key, self._renamings)
        unprefixed, _ = apply_converters(renamed, self._converters)
        if parameter == f"{self._prefix}.{unprefixed}":
            renamed = f"{self._prefix}.{renamed}"
        elif unprefixed == f"{self._prefix}.{parameter}":
            renamed = renamed.removeprefix(f"{self._prefix}.")
        return parameter, renamed, pattern

    def _orientation(self, parameter: str, pattern: str | None) -> Orientation | None:
        if pattern is not None:  # experts that are only stacked, or stacked and joined, were linear maps one by one
            converter = next(c for c in self._converters if pattern in c.source_patterns)
            steps = [type(step) for step in converter.operations]
            return "out,in" if steps in ([MergeModulelist], [MergeModulelist, Concatenate]) else None
        path, _, leaf = parameter.rpartition(".")
        module = self._model.get_submodule(path) if leaf == "weight" else None
        if isinstance(module, nn.Linear):
            return "out,in"
        return "in,out" if isinstance(module, Conv1D) else None
