"""The twin's adapter: the same tensors and settings on smaller weights, with smaller ranks. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from merge.adapters import Adapter
from merge.adapters.config import Settings
from merge.adapters.contract import Addition, Contribution, Stacked, TokenRows
from merge.catalog import Tensor
from merge.rehearse.dimensions import Cut
from merge.rehearse.shapes import Shape, Shapes

TOKENS = 64  # trained rows of an embedding that are kept


Ranks = Mapping[int, int]  # of the real adapter → of the twin's


def ranks(adapters: Iterable[Adapter], shapes: Shapes) -> Ranks:
    """Every rank that the adapters have or name: distinct ones become distinct small ones, in their order: 8, 16, 64 → 2, 3, 4."""
    found: list[int] = []
    for adapter in adapters:
        found += [adapter.settings.rank, *adapter.settings.rank_pattern.values()]
        found += [c.a.shape[0] for c in adapter.contributions if isinstance(c, Addition)]
        found += [c.a.shape[0] // experts(c, shapes) for c in adapter.contributions if isinstance(c, Stacked)]
    return {rank: min(rank, place) for place, rank in enumerate(sorted(set(found)), 2)}


def experts(stacked: Stacked, shapes: Shapes) -> int:
    """How many matrices the parameter holds."""
    real = [
        shapes.real[shapes.table.aliases[name].parameter] for name in stacked.names if shapes.table.aliases[name].parameter in shapes.real
    ]
    return next((shape[0] for shape in real if len(shape) == 3), 1)


def shape_of(adapter: Adapter, shapes: Shapes, cut: Cut, small: Ranks, base: Mapping[str, Tensor]) -> dict[str, Shape]:
    """The shape of every tensor of one adapter."""
    found: dict[str, Shape] = {}
    for contribution in adapter.contributions:
        around = shapes.around(contribution.names, base)

        def length(n: int, around: dict[int, int] = around) -> int:
            return around[n] if n in around else cut.rows(n) or shapes.length(n)

        found |= _shapes(contribution, length, small, shapes)
    return found


def _shapes(contribution: Contribution, length: Any, small: Ranks, shapes: Shapes) -> dict[str, Shape]:
    if isinstance(contribution, Addition):
        a, b = contribution.a, contribution.b
        rank = small[a.shape[0]]
        found = {a.name: (rank, *map(length, a.shape[1:])), b.name: (length(b.shape[0]), rank, *b.shape[2:])}
        magnitude = contribution.magnitude
        return found | ({magnitude.name: tuple(length(n) if n > 1 else n for n in magnitude.shape)} if magnitude else {})
    if isinstance(contribution, Stacked):
        a, b, count = contribution.a, contribution.b, experts(contribution, shapes)
        rank = small[a.shape[0] // count]
        return {a.name: (count * rank, length(a.shape[1])), b.name: (length(b.shape[0]), rank * count)}
    value = contribution.value
    if isinstance(contribution, TokenRows):
        return {value.name: (min(value.shape[0], TOKENS), *map(length, value.shape[1:]))}
    return {value.name: tuple(map(length, value.shape))}


def config(config: Mapping[str, Any], settings: Settings, small: Ranks) -> dict[str, Any]:
    """adapter_config.json with the small ranks, and with the first rows of the embedding in place of the trained ones."""
    found = dict(config)
    found["r"] = small[settings.rank]
    if config.get("rank_pattern"):
        found["rank_pattern"] = {key: small[rank] for key, rank in config["rank_pattern"].items()}
    named = config.get("trainable_token_indices")
    if isinstance(named, dict):
        found["trainable_token_indices"] = {key: list(range(min(len(rows), TOKENS))) for key, rows in named.items()}
    elif named:
        found["trainable_token_indices"] = list(range(min(len(named), TOKENS)))
    return found
