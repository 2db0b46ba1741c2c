"""config.json → transformers' model on the meta device → `NameTable`.

transformers renames and fuses checkpoint keys while it loads. The same tables are asked here, on a model without storage,
so that no family's rules are written down twice.
"""

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
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
from transformers.initialization import no_init_weights
from transformers.pytorch_utils import Conv1D

from merge.errors import NOTHING_WRITTEN, CheckpointError
from merge.nametable import Layout, NameTable, Weight


def name_table(config: Path, disk_keys: Iterable[str], adapter_names: Iterable[str]) -> NameTable:
    """The names of one checkpoint.

    config         path of config.json      disk_keys  every tensor of the checkpoint
    adapter_names  weight names as the adapters spell them, without prefix, e.g. "model.layers.0.self_attn.q_proj.weight"

    Raises CheckpointError if transformers does not know the architecture: remote code is never run.
    """
    model = _skeleton(config)
    names = _Names(model)
    weights, unmatched = [], []
    for key in sorted(disk_keys, key=dot_natural_key):  # the loader's order: some renamings depend on those before them
        parameter, renamed, pattern = names.canonical(key)
        if parameter in names.parameters:
            weights.append(Weight(key, parameter, renamed, names.layout(parameter, pattern), pattern is not None))
        else:
            unmatched.append(key)
    aliases = {name: names.canonical(name)[:2] for name in sorted(adapter_names, key=dot_natural_key)}
    modules = {path: layout for path, module in model.named_modules() if (layout := _layout(module)) != "other"}
    tied = dict(model.all_tied_weights_keys)
    embedded = {f"{path}.weight" for path, module in model.named_modules() if module is model.get_input_embeddings()}
    embedding = next((weight.key for weight in weights if weight.parameter in embedded), None)
    return NameTable(type(model).__name__, tuple(weights), tuple(unmatched), aliases, tied, modules, embedding)


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

    def canonical(self, key: str) -> tuple[str, str, str | None]:
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

    def layout(self, parameter: str, pattern: str | None) -> Layout:
        """How the disk tensor behind a parameter is stored; stacked experts are linears one by one."""
        if pattern is not None:
            operations = [type(operation) for operation in self._by_pattern[pattern].operations]
            return "linear" if operations in ([MergeModulelist], [MergeModulelist, Concatenate]) else "other"
        path, _, leaf = parameter.rpartition(".")
        return _layout(self._model.get_submodule(path)) if leaf == "weight" else "other"


def _layout(module: nn.Module) -> Layout:
    if isinstance(module, nn.Linear):
        return "linear"
    return "conv1d" if isinstance(module, Conv1D) else "other"


class _PositionsOnCpu(TorchFunctionMode):
    """`torch.arange` makes real numbers even where everything else has no storage: on the meta device it would load sympy."""

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = {"device": "cpu"} if function is torch.arange else {}
        return function(*args, **(device | (kwargs or {})))


def _skeleton(config_file: Path) -> Any:
    """The model class that config.json names, without storage."""
    try:
        names = json.loads(config_file.read_text()).get("architectures") or []
        known = isinstance(names, list) and bool(names) and isinstance(names[0], str) and names[0].isidentifier()
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{config_file.name} of the base cannot be read: {error}\n{NOTHING_WRITTEN}") from error
    model_class = getattr(transformers, names[0], None) if known else None
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise CheckpointError(
            f"transformers {transformers.__version__} does not know the architecture {names}; remote code is never run.\n{NOTHING_WRITTEN}"
        )
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), torch.device("meta"), _PositionsOnCpu(), no_init_weights():
            warnings.simplefilter("ignore")  # about generation and rope settings; nothing here runs the model
            config = transformers.AutoConfig.from_pretrained(config_file.parent, local_files_only=True, trust_remote_code=False)
            config._attn_implementation = "eager"  # nothing runs; kernels that the config asks for may not be installed
            return model_class(config)
    except Exception as error:  # a config can be wrong in as many ways as transformers has lines
        raise CheckpointError(f"transformers cannot build {names[0]} from {config_file.name}: {error}\n{NOTHING_WRITTEN}") from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
