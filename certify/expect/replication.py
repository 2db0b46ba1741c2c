"""layer_replication: the adapter was trained on a stack that repeats layers of the base; every copy becomes a layer of its own."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from certify.errors import NotInterpretedError
from certify.expect.declared import Changes
from certify.expect.places import Places
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.stored import Stored

SETTING = (bool, int, float, str)
OWN_NUMBER = re.compile(r"idx|^(layer|block)_(id|num|number)$")  # which layer it is, and no setting
COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")  # what configurations call the number of their layers
PER_LAYER = "layer_types"  # a list in config.json with an entry for each layer


def expanded(base: Checkpoint, model: Any, sources: Sequence[int]) -> Checkpoint:
    """The base as the adapter saw it: tensor n of the stack is that of layer sources[n]. Raises NotInterpretedError."""
    stack = _stack(model)
    if max(sources) >= len(model.get_submodule(stack)):
        raise NotInterpretedError(f"layer_replication names layer {max(sources)}, {stack} has {len(model.get_submodule(stack))}")
    places = Places(model, base.tensors)
    inside = re.compile(rf"{re.escape(stack)}\.(\d+)\.")
    tensors: dict[str, Stored] = {}
    homes: dict[str, tuple[str, ...]] = {}
    for key, stored in base.tensors.items():
        place = places.all.get(key) or places.all.get(f"{key.rpartition('.')[0]}.weight")  # a scale goes with its weight
        layer = inside.match(place.parameter) if place else None
        names = [key] if layer is None else [_renumbered(key, layer[1], n) for n, source in enumerate(sources) if source == int(layer[1])]
        tensors |= dict.fromkeys(names, stored)
        homes |= dict.fromkeys(names, base.homes[key])
    return replace(base, tensors=tensors, homes=homes, weight_map={key: base.weight_map.get(key, "") for key in tensors})


def changes(config: dict[str, Any], sources: Sequence[int]) -> Changes:
    """What config.json must say of the stack. Raises NotInterpretedError where a layer would be run as two different kinds."""
    kinds = config.get(PER_LAYER)
    found: Changes = {next((field for field in COUNTS if field in config), COUNTS[0]): len(sources)}
    if not isinstance(kinds, list) or len(kinds) <= max(sources):
        return found
    for position, source in enumerate(sources):
        if position < len(kinds) and kinds[position] != kinds[source]:
            raise NotInterpretedError(f"layer_replication puts a {kinds[source]} layer where the base has {kinds[position]}: PEFT ran both")
    return found | {PER_LAYER: [kinds[layer] for layer in sources]}


def hold_alike(before: Any, after: Any, sources: Sequence[int]) -> None:
    """The stack that config.json will describe must be the trained one, copy by copy. Raises NotInterpretedError."""
    old, new = before.get_submodule(_stack(before)), after.get_submodule(_stack(after))
    for position, source in enumerate(sources):
        if _described(old[source]) != _described(new[position]):
            raise NotInterpretedError(f"layer_replication: config.json cannot say that layer {position} is a copy of layer {source}")


def _described(layer: nn.Module) -> list[str]:
    """Every module of a layer: its class, its shapes and its settings, which are what tells a layer's kind."""
    found = []
    for path, module in layer.named_modules():
        settings = sorted(
            (name, value) for name, value in vars(module).items() if isinstance(value, SETTING) and not OWN_NUMBER.search(name)
        )
        found.append(f"{path} {module!r} {[tuple(p.shape) for p in module.parameters(recurse=False)]} {settings}")
    return found


def _stack(model: Any) -> str:
    """The list that PEFT replaces: the innermost `.model`, then its layers (peft 0.21.2, tuners_utils.py:replicate_layers)."""
    path: list[str] = []
    module = model
    while hasattr(module, "model"):
        path, module = [*path, "model"], module.model
    if hasattr(module, "bert"):
        path, module = [*path, "bert"], module.bert
    for name in ("layers", "encoder.layer", "h"):
        try:
            found = module.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList):
            return ".".join([*path, name])
    raise NotInterpretedError("layer_replication: this architecture has no stack that PEFT could repeat")


def _renumbered(key: str, layer: str, number: int) -> str:
    return re.sub(rf"\.{layer}\.", f".{number}.", key, count=1)
