"""`layer_replication`: whether the configuration can say which layer of the base each layer of the trained stack is.

A configuration often tells a layer's kind from its number: every sixth one attends to everything, the first three are dense. The trained
stack holds copies that keep the kind of the layer that they were copied from.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from merge.architecture.skeleton import model_class, read_config, skeleton
from merge.errors import NOTHING_WRITTEN, AdapterError

SCALARS = (bool, int, float, str, type(None))
Traits = dict[tuple[str, str], Any]


def refuse_other_layers(config: Path, changes: Mapping[str, Any], numbers: Sequence[int]) -> None:
    """Raises AdapterError where a layer of the new stack would not be made as the one that it is a copy of.

    An architecture that transformers does not know is taken at its configuration's word.

    config  path of the base's config.json      changes  what the merge will change in it      numbers  the layer of the base behind each
    """
    name = next(iter(read_config(config).get("architectures") or ()), None)
    if not isinstance(name, str) or model_class(name) is None:
        return  # a class that nobody here can ask
    old, new = _stack(skeleton(config, name, {}), max(numbers) + 1), _stack(skeleton(config, name, changes), len(numbers))
    for position, source in enumerate(numbers):
        if _traits(old[source], source) != _traits(new[position], position):
            raise AdapterError(
                f"layer_replication: layer {position} of the trained stack is a copy of layer {source}, and config.json would make another "
                f"kind of layer there. {NOTHING_WRITTEN}"
            )


def _stack(model: nn.Module, least: int) -> nn.ModuleList:
    """The first list of layers that is long enough: the only one, since the names on disk have one numbered stack."""
    found = next((module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) >= least), None)
    if found is None:
        raise AdapterError(f"layer_replication: {type(model).__name__} has no list of {least} layers. {NOTHING_WRITTEN}")
    return found


def _traits(layer: nn.Module, number: int) -> Traits:
    """Everything that tells one layer from another: classes, shapes and plain attributes, its own number aside."""
    found: Traits = {}
    for path, module in layer.named_modules():
        found[path, "class"] = type(module)
        found |= {(path, name): tuple(value.shape) for name, value in module.named_parameters(recurse=False)}
        plain = {name: value for name, value in vars(module).items() if isinstance(value, SCALARS)}
        found |= {(path, name): "its number" if type(value) is int and value == number and name.startswith("layer_i") else value
                  for name, value in plain.items()}  # fmt: skip
    return found
