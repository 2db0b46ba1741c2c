"""`layer_replication`: the trained stack repeats layers of the base, so that several output tensors begin as one of the base's. Pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from merge.adapters import Adapter
from merge.catalog import Catalog, Tensor
from merge.errors import NOTHING_WRITTEN, AdapterError

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


def edits(adapters: Iterable[Adapter], config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the configuration that count layers, for the stack that the adapters were trained on."""
    numbers = next((adapter.settings.replication for adapter in adapters if adapter.settings.replication), None)
    if numbers is None:
        return {}
    found: dict[str, Any] = {"num_hidden_layers": len(numbers)}
    kinds = config.get("layer_types")
    return found | ({"layer_types": [kinds[layer] for layer in numbers]} if isinstance(kinds, list) else {})


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
