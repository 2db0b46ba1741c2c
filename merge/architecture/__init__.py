"""config.json → transformers' model on the meta device → `NameTable`.

transformers renames and fuses checkpoint keys while it loads. The same tables are asked here, on a model without storage,
so that no family's rules are written down twice.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
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

from merge.architecture import modules as behaviour
from merge.architecture.skeleton import filled, model_class, read_config, skeleton, with_head
from merge.architecture.stack import refuse_other_layers
from merge.nametable import Alias, Layout, NameTable, Piece, Weight

__all__ = ["filled", "name_table", "read_config", "refuse_other_layers", "with_head"]

TARGETED: tuple[Layout, ...] = ("linear", "conv1d", "embedding", "convolution")


def name_table(
    config: Path,
    disk_keys: Iterable[str],
    adapter_names: Iterable[str],
    *,
    head: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> NameTable:
    """The names of one checkpoint.

    config         path of config.json      disk_keys  every tensor of the checkpoint
    adapter_names  weight names as the adapters spell them, without prefix, e.g. "model.layers.0.self_attn.q_proj.weight"
    head           another class than the base's: the one whose head the adapter brings
    changes        fields of the configuration that the merge will change

    An architecture that transformers does not know is taken literally: remote code is never run.
    """
    names = [head] if head else read_config(config)["architectures"][:1]
    if not names or model_class(names[0]) is None:
        return literal(names[0] if names else "no architecture", disk_keys, adapter_names)
    model = skeleton(config, names[0], changes or {})
    renaming = _Names(model)
    read = {key: renaming.weight(key) for key in sorted(disk_keys, key=dot_natural_key)}  # the loader's order: some renamings depend on it
    weights = tuple(weight for weight in read.values() if weight)
    aliases = {name: renaming.alias(name) for name in sorted(adapter_names, key=dot_natural_key)}
    modules = {path: layout for path, module in model.named_modules() if (layout := behaviour.layout(module)) in TARGETED}
    inputs, outputs = _weight_of(model, model.get_input_embeddings), _weight_of(model, model.get_output_embeddings)
    embeddings = tuple(name for name in (inputs, outputs) if name)
    return NameTable(
        architecture=type(model).__name__,
        weights=weights,
        unmatched=tuple(key for key, weight in read.items() if weight is None),
        aliases=aliases,
        tied=dict(model.all_tied_weights_keys),
        modules=modules,
        embedding=next((weight.key for weight in weights if weight.parameter == inputs), None),
        owners=behaviour.owners(model),
        absent=frozenset(renaming.parameters) - {weight.parameter for weight in weights},
        embeddings=embeddings,
        head=outputs,
        linear=tuple(path for path, layout in modules.items() if layout in ("linear", "conv1d")),
        scaled=behaviour.scaled(model),
        foreign=behaviour.foreign(model),
        encoder_decoder=bool(getattr(model.config, "is_encoder_decoder", False)),
    )


def literal(architecture: str, disk_keys: Iterable[str], adapter_names: Iterable[str]) -> NameTable:
    """Names as they stand, for an architecture that nobody knows: a name of the adapter is a disk key, or the end of exactly one."""
    held = set(disk_keys)
    keys = sorted(held)
    weights = tuple(Weight(key, key, key, "unknown", fused=False) for key in keys)
    aliases = {}
    for name in adapter_names:
        ends = [name] if name in held else [key for key in keys if key.endswith(f".{name}")]
        aliases[name] = Alias(ends[0], ends[0]) if len(ends) == 1 else Alias(name, name)
    return NameTable(architecture, weights, (), aliases, {}, {}, None, known=False)


class _Names:
    """transformers' own renamings of one model; the tables keep state, so that each name table needs fresh ones."""

    def __init__(self, model: Any) -> None:
        transforms = get_model_conversion_mapping(model)
        self._model = model
        self._prefix: str = model.base_model_prefix
        self._renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self._converters = [t for t in transforms if isinstance(t, WeightConverter)]
        self._by_pattern = {pattern: c for c in self._converters for pattern in c.source_patterns}
        self.parameters = model.state_dict()
        self._bypassed, self._foreign = behaviour.bypassed(model), behaviour.foreign(model)

    def weight(self, key: str) -> Weight | None:
        """The disk tensor of this name, or None where no module owns it."""
        parameter, renamed, pattern = self._canonical(key)
        if parameter not in self.parameters:
            return None
        if pattern is None:
            return Weight(key, parameter, renamed, self._layout(parameter), fused=False)
        piece, turned = self._piece(renamed, pattern), self._transposition(pattern)
        if turned is None:
            return Weight(key, parameter, renamed, "linear" if piece else "other", fused=True, piece=piece)
        return Weight(key, parameter, renamed, "parameter", fused=False, flipped=None if turned.check_dims else True)

    def alias(self, name: str) -> Alias:
        """What an adapter's weight name means."""
        parameter, renamed, pattern = self._canonical(name)
        return Alias(parameter, renamed, self._piece(renamed, pattern) if pattern else None)

    def _transposition(self, pattern: str) -> Transpose | None:
        """The whole of a conversion that turns every expert's matrix."""
        operations = self._by_pattern[pattern].operations
        single = operations[0] if len(operations) == 1 else None
        return single if isinstance(single, Transpose) and {single.dim0, single.dim1} == {1, 2} else None

    def _piece(self, renamed: str, pattern: str) -> Piece | None:
        """Which part of the fused parameter a name speaks of, where the fusion is a plain stacking of experts."""
        converter = self._by_pattern[pattern]
        kinds = [type(operation) for operation in converter.operations]
        if kinds not in ([MergeModulelist], [MergeModulelist, Concatenate]):
            return None
        number = re.search(re.escape(pattern).replace(r"\*", r"(\d+)"), renamed)
        patterns = list(converter.source_patterns)
        return Piece(int(number[1]), patterns.index(pattern), len(patterns)) if number else None

    def _canonical(self, key: str) -> tuple[str, str, str | None]:
        """(parameter, renamed but not fused, pattern of the fusion or None), prefixes of the headless model added or removed."""
        parameter, pattern = rename_source_key(key, self._renamings, self._converters, self._prefix, self.parameters)
        if parameter not in self.parameters and key in self.parameters:  # the loader's second try: no renaming
            parameter, pattern = rename_source_key(key, [], [], self._prefix, self.parameters)
            return parameter, parameter, pattern
        renamed = apply_renamings(key, self._renamings)
        bare, _ = apply_converters(renamed, self._converters)
        if parameter == f"{self._prefix}.{bare}":
            renamed = f"{self._prefix}.{renamed}"
        elif bare == f"{self._prefix}.{parameter}":
            renamed = renamed.removeprefix(f"{self._prefix}.")
        return parameter, renamed, pattern

    def _layout(self, parameter: str) -> Layout:
        """How the disk tensor behind a parameter is stored, from its module's class."""
        path, _, leaf = parameter.rpartition(".")
        module = self._model.get_submodule(path)
        if path in self._bypassed and leaf == "weight":
            return "bypassed"
        if path in self._foreign and leaf == "weight":
            return "foreign"
        if leaf == "weight" and behaviour.layout(module) != "other":
            return behaviour.layout(module)
        if leaf == "in_proj_weight" and isinstance(module, nn.MultiheadAttention):
            return "linear"
        return "parameter" if len(self.parameters[parameter].shape) in (2, 3) else "other"


def _weight_of(model: Any, ask: Callable[[], nn.Module | None]) -> str | None:
    """The parameter of the embedding that a model names; None for models of pictures or sound, which have none."""
    try:
        wanted = ask()
    except NotImplementedError:
        return None
    return next((f"{path}.weight" for path, module in model.named_modules() if module is wanted), None)
