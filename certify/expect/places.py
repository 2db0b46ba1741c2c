"""Which disk tensor a module's weight is. The names are pushed through transformers' own renaming tables and joined there.

transformers renames and fuses while it loads, and adapters of an older release carry older names. Both sides go through the same
tables; they meet at the parameter, or, for fused experts, at the name that is renamed but not yet fused.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    apply_converters,
    apply_renamings,
    dot_natural_key,
    rename_source_key,
)
from transformers.pytorch_utils import Conv1D

from certify.errors import NotInterpretedError
from certify.expect import behaviour
from certify.expect.place import Kind, Member, Orientation, Piece, Place

NUMBERED = re.compile(r"\.(\d+)(?=\.)")
KINDS: tuple[tuple[Any, Kind], ...] = (
    ((nn.Linear, Conv1D), "linear"),
    (nn.Embedding, "embedding"),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), "convolution"),
    (nn.MultiheadAttention, "attention"),
)


class Places:
    """The disk tensors of one checkpoint, found by any of their names."""

    literal = False

    def __init__(self, model: Any, disk_keys: Iterable[str]) -> None:
        transforms = get_model_conversion_mapping(model)  # they keep state: one fresh set per checkpoint
        self._model = model
        self._prefix: str = model.base_model_prefix
        self._renamings = [transform for transform in transforms if isinstance(transform, WeightRenaming)]
        self._converters = [transform for transform in transforms if isinstance(transform, WeightConverter)]
        self._parameters = model.state_dict()
        self._source = dict(model.all_tied_weights_keys)
        self._keys = frozenset(disk_keys)
        self.embedding = _weight_of(model, model.get_input_embeddings)
        self._head = _weight_of(model, model.get_output_embeddings)
        self.all: dict[str, Place] = {}
        for key in sorted(self._keys, key=dot_natural_key):  # the loader's order: a renaming may wait for an earlier key
            if (place := self._place(key)) is not None:
                self.all[key] = place
        self._plain: dict[str, bool] = {}
        self._by_parameter = {place.parameter: place for place in self.all.values() if not place.fused}
        self._by_renamed = {place.renamed: place for place in self.all.values()}

    def find(self, name: str) -> Place | None:
        """The disk tensor behind a weight name of an adapter; a tied weight is found at the one that it shares."""
        parameter, renamed, _ = self._meet(name)
        found = self._by_parameter.get(parameter) or self._by_renamed.get(renamed)
        return found or self._tied(parameter) or self._beside(name)

    def parameter(self, name: str) -> str:
        """The in-memory parameter that a name means, whether or not there is one."""
        return self._meet(name)[0]

    def source(self, parameter: str) -> str | None:
        """The parameter whose storage this one shares, if it is tied."""
        return self._source.get(parameter)

    def aliases(self, parameter: str) -> tuple[str, ...]:
        """The parameters that share this one's storage."""
        return tuple(sorted(alias for alias, source in self._source.items() if source == parameter))

    def is_head(self, parameter: str) -> bool:
        """Whether it is the weight of the model's output embedding; a tied one is its source."""
        return bool(self._head) and self._head in (parameter, self._source.get(parameter))

    def odd(self, parameter: str) -> str:
        """Why what PEFT puts beside the module of this weight is no change of it; "" where it is."""
        module = self._module(parameter)
        if module is not None and str(module) not in self._plain:
            self._plain[str(module)] = behaviour.is_plain(module)
        if module is None or self._plain[str(module)]:
            return ""
        return f"{type(module).__name__} does more with its weight than PEFT takes for granted; no weight is what was trained beside it"

    def silent(self, parameter: str) -> bool:
        """Whether the model reads this weight and never calls its module, so that what PEFT puts beside it has no effect."""
        holder, _, name = parameter.removesuffix(".weight").rpartition(".")
        if self._module(parameter) is None:
            return False
        kind: Any = type(self._model.get_submodule(holder))
        return not behaviour.is_called(kind, name)

    def factor(self, parameter: str) -> float:
        """By which the rows of an embedding are multiplied when they are looked up; NaN where that is not known."""
        module = self._module(parameter)
        return 1.0 if module is None else behaviour.factor(module)

    def biased(self, parameter: str) -> str:
        """The linear module with a bias that works with this weight, or with one that is tied to it; "" where there is none."""
        modules = ((name.removesuffix(".weight"), self._module(name)) for name in (parameter, *self.aliases(parameter)))
        return next((path for path, module in modules if isinstance(module, nn.Linear) and module.bias is not None), "")

    def linear(self, task: str) -> tuple[str, ...]:
        """What "all-linear" stands for: peft 0.21.2, tuners_utils.py:_maybe_include_all_linear_layers."""
        output = self._model.get_output_embeddings() if self._head else None
        if output is None and task == "SEQ_CLS":
            output = next((getattr(self._model, name) for name in ("score", "classifier") if hasattr(self._model, name)), None)
        modules = self._model.named_modules()
        return tuple(path for path, module in modules if isinstance(module, (nn.Linear, Conv1D)) and module is not output)

    def inside(self, name: str) -> Piece | None:
        """The share of a disk tensor that holds all experts, where a name speaks of a single one."""
        parameter, renamed, pattern = self._meet(name)
        place, number = self._by_parameter.get(parameter), NUMBERED.findall(name)
        if pattern is None or place is None or renamed in self._by_renamed or not number:
            return None
        converter = self._converter(pattern)
        if [type(step) for step in converter.operations] not in ([MergeModulelist], [MergeModulelist, Concatenate]):
            return None
        return Piece(place.key, int(number[-1]), converter.source_patterns.index(pattern), len(converter.source_patterns))

    def members(self, module: str) -> tuple[Member, ...]:
        """The parameters that a module itself owns, in its own order, by its name with or without the model's prefix."""
        for path in (module, f"{self._prefix}.{module}", module.removeprefix(f"{self._prefix}.")):
            try:
                found = self._model.get_submodule(path)
            except AttributeError:
                continue
            turned = bool(getattr(found, "is_transposed", False))
            own = found.named_parameters(recurse=False)
            return tuple(Member(f"{path}.{leaf}", tuple(tensor.shape), turned) for leaf, tensor in own)
        return ()

    def pieces(self, parameter: str, shapes: Any) -> tuple[Piece, ...]:
        """The disk tensors that fill a parameter. shapes: disk key → shape. Raises NotInterpretedError for other ways."""
        keys = [place for place in self.all.values() if place.parameter == parameter]
        if not keys or not keys[0].pattern:
            return tuple(Piece(place.key) for place in keys)
        converter = self._converter(keys[0].pattern)
        steps = [(type(step), getattr(step, "dim", None)) for step in converter.operations]
        if steps in ([(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)]):
            patterns = list(converter.source_patterns)
            seen = dict.fromkeys(patterns, -1)
            found = []
            for place in keys:  # in the loader's order: the number of an expert is its place among those of its pattern
                seen[place.pattern] += 1
                found.append(Piece(place.key, seen[place.pattern], patterns.index(place.pattern), len(patterns)))
            return tuple(found)
        if len(keys) == 1 and [step for step, _ in steps] == [Transpose]:
            step = converter.operations[0]
            same = tuple(shapes[keys[0].key]) == tuple(self._parameters[parameter].shape)
            if {step.dim0 % 3, step.dim1 % 3} == {1, 2} and len(shapes[keys[0].key]) == 3:
                return (Piece(keys[0].key, flipped=not (step.check_dims and same)),)
        raise NotInterpretedError(f"{keys[0].key} is converted to {parameter} in a way that this version does not know")

    def of_parameter(self, parameter: str) -> Place | None:
        """The disk tensor that fills a parameter on its own."""
        return self._by_parameter.get(parameter)

    def _module(self, parameter: str) -> Any:
        """The module whose `weight` it is; None for other parameters, and for those that the architecture has not."""
        known = parameter in self._parameters and parameter.endswith(".weight")
        return self._model.get_submodule(parameter.removesuffix(".weight")) if known else None

    def _place(self, key: str) -> Place | None:
        parameter, renamed, pattern = self._meet(key)
        if parameter not in self._parameters:
            return None
        tied = parameter in self._source or parameter in self._source.values()
        orientation = self._orientation(parameter, pattern)
        return Place(key, parameter, renamed, orientation, pattern is not None, tied, self._kind(parameter, orientation), pattern or "")

    def _converter(self, pattern: str) -> Any:
        return next(c for c in self._converters if pattern in c.source_patterns)

    def _tied(self, parameter: str) -> Place | None:
        """A weight that is not on disk: the tensor that it shares, seen from its own module."""
        if (shared := self._by_parameter.get(self._source.get(parameter, ""))) is None:
            return None
        orientation = self._orientation(parameter, None)
        return replace(shared, parameter=parameter, orientation=orientation, kind=self._kind(parameter, orientation))

    def _beside(self, name: str) -> Place | None:
        """A tensor that the architecture leaves out (a layer that predicts further tokens), by its own name: it is built as its like in the
        other layers is."""
        if name not in self._keys or name in self.all:
            return None
        orientation = self._alike.get(NUMBERED.sub(".*", name))
        return Place(name, name, name, orientation, fused=False, tied=False, kind="linear") if orientation else None

    @cached_property
    def _alike(self) -> dict[str, Orientation]:
        """Names without their numbers, and how the modules of that name store their matrices."""
        return {NUMBERED.sub(".*", place.key): place.orientation for place in self.all.values() if place.orientation}

    def _kind(self, parameter: str, orientation: Orientation | None) -> Kind:
        if orientation:
            return "linear"
        module = self._model.get_submodule(parameter.rpartition(".")[0])
        return next((kind for classes, kind in KINDS if isinstance(module, classes)), "other")

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
            steps = [type(step) for step in self._converter(pattern).operations]
            return "out,in" if steps in ([MergeModulelist], [MergeModulelist, Concatenate]) else None
        path, _, leaf = parameter.rpartition(".")
        module = self._model.get_submodule(path) if leaf == "weight" else None
        if isinstance(module, nn.Linear):
            return "out,in"
        return "in,out" if isinstance(module, Conv1D) else None


def _weight_of(model: Any, module: Callable[[], Any]) -> str:
    """The parameter's name, "" where the model has no such module."""
    try:
        weight = module().weight
    except (AttributeError, NotImplementedError):  # a model of pictures or sound
        return ""
    return next((name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is weight), "")
