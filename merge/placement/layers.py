"""`layer_replication`: the trained stack repeats layers of the base, so that several output tensors begin as one of the base's. Pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from merge.adapters import Adapter
from merge.catalog import Catalog, Tensor
from merge.errors import NOTHING_WRITTEN, AdapterError

COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")  # what configurations call the number of their layers
NUMBERED = re.compile(r"^(.*?)\.(\d+)\.(.*)$")
Outline = tuple[tuple[tuple[str, Tensor], ...], ...]  # per shard: (name in the output, the base's tensor that it begins as)


def outline(catalogs: Iterable[Catalog], adapters: Iterable[Adapter]) -> Outline:
    """What the output's shards hold before anything is merged; raises AdapterError if the adapters were trained on different stacks."""
    catalogs = tuple(catalogs)
    stacks = {adapter.settings.replication for adapter in adapters}
    if len(stacks) > 1:
        raise AdapterError(f"layer_replication differs between the adapters. {NOTHING_WRITTEN}")
    (numbers,) = stacks or {None}
    if numbers is None:
        return tuple(tuple((tensor.name, tensor) for tensor in catalog.tensors) for catalog in catalogs)
    prefix = _stack([tensor.name for catalog in catalogs for tensor in catalog.tensors], numbers)
    copies: dict[int, list[int]] = defaultdict(list)
    for position, layer in enumerate(numbers):
        copies[layer].append(position)
    return tuple(tuple(pair for tensor in catalog.tensors for pair in _copies(tensor, prefix, copies)) for catalog in catalogs)


def edits(numbers: tuple[int, ...], config: Mapping[str, Any], base: Iterable[Catalog]) -> dict[str, Any]:
    """The fields of the configuration that count layers, for the stack that the adapters were trained on.

    config  as transformers reads it, every default filled in      base  the shards, whose layers it must count

    Raises AdapterError where the configuration cannot say what the trained stack was.
    """
    names = [tensor.name for catalog in base for tensor in catalog.tensors]
    prefix, counted = _stack(names, numbers), next((field for field in COUNTS if field in config), COUNTS[0])
    count = config.get(counted)
    held = {int(match[2]) for name in names if (match := NUMBERED.match(name)) and match[1] == prefix}
    if count != len(held):
        raise AdapterError(
            f"layer_replication: config.json counts {count} layers ({counted}), and the base holds {len(held)}; "
            f"what becomes of the others is not known here. {NOTHING_WRITTEN}"
        )
    found: dict[str, Any] = {counted: len(numbers)}
    kinds = config.get("layer_types")
    if not isinstance(kinds, list):
        return found
    if len(kinds) != count:
        raise AdapterError(f"layer_replication: layer_types names {len(kinds)} layers, and the base holds {count}. {NOTHING_WRITTEN}")
    if any(kinds[position] != kinds[layer] for position, layer in enumerate(numbers[: len(kinds)])):
        raise AdapterError(
            "layer_replication puts a layer where the base has one of another kind (layer_types): some versions of transformers ran it as "
            f"the one, some as the other. {NOTHING_WRITTEN}"
        )
    return found | {"layer_types": [kinds[layer] for layer in numbers]}


def _stack(names: Iterable[str], numbers: tuple[int, ...]) -> str:
    """The one prefix whose numbers are the base's layers; raises AdapterError unless they are 0 … n and hold all that is asked for."""
    found: dict[str, set[int]] = defaultdict(set)
    for name in names:
        match = NUMBERED.match(name)
        if match:
            found[match[1]].add(int(match[2]))
    if len(found) != 1:
        raise AdapterError(
            f"layer_replication: {len(found)} numbered stacks in the base ({sorted(found)}), one was expected. {NOTHING_WRITTEN}"
        )
    ((prefix, held),) = found.items()
    if held != set(range(len(held))) or not set(numbers) <= held:
        raise AdapterError(f"layer_replication asks for layers {sorted(set(numbers))}, the base has {sorted(held)}. {NOTHING_WRITTEN}")
    return prefix


def _copies(tensor: Tensor, prefix: str, copies: Mapping[int, list[int]]) -> Iterable[tuple[str, Tensor]]:
    match = NUMBERED.match(tensor.name)
    if match is None or match[1] != prefix:
        return [(tensor.name, tensor)]
    return [(f"{prefix}.{position}.{match[3]}", tensor) for position in copies.get(int(match[2]), ())]
