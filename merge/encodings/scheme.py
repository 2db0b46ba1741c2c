"""What a checkpoint's `quantization_config` says of its tensors: which have a scale, where it stands, and what shares one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from merge.catalog import Tensor
from merge.errors import NOTHING_WRITTEN, CheckpointError, listing
from merge.operation import Scale

DECLARED_IN = ("quantization_config", "compression_config")  # the second is what compressed-tensors wrote before it had the first
CODES = "F8_E4M3"
SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0", "U8")


@dataclass(frozen=True, slots=True)
class Scheme:
    """One way to quantise a checkpoint.

    method  as its configuration calls it      suffix  what a weight's name gets in the name of its scale
    blocks  (height, width) that share a scale, 0 for all rows or all columns; several where the configuration names several
    beside  ends of names that only a quantised checkpoint has: activation and cache scales
    """

    method: str
    suffix: str
    blocks: tuple[tuple[int, int], ...]
    beside: tuple[str, ...] = ()

    def scales(self, base: Mapping[str, Tensor]) -> dict[str, Scale]:
        """Name in `base` → its scale, for every quantised weight that has one. Raises CheckpointError for scales that fit no weight."""
        found, problems = {}, []
        for name, tensor in base.items():
            owner = name.removesuffix(self.suffix)
            weight = base.get(owner) if owner != name else None
            if weight is None:
                problems += [f"{tensor}  without its weight"] if owner != name and owner.endswith(".weight") else []
                continue
            fitting = {block: None for block in self.blocks if _grid(weight.shape, block) == _without_ones(tensor.shape)}
            if weight.dtype != CODES or tensor.dtype not in SCALE_DTYPES or len(weight.shape) < 2 or not fitting:
                problems.append(f"{weight}  with  {tensor}")
            else:
                height, width = next(iter(fitting))
                found[owner] = Scale(tensor, height or weight.shape[-2], width or weight.shape[-1])
        if problems:
            expected = ", ".join(f"{height or 'all'} × {width or 'all'}" for height, width in self.blocks)
            raise CheckpointError(
                f"{len(problems)} scales do not fit their weights; the configuration ({self.method}) says blocks of {expected}\n"
                f"{listing(problems)}\n{NOTHING_WRITTEN}"
            )
        return found

    def companions(self, base: Iterable[str], scales: Iterable[str]) -> frozenset[str]:
        """The tensors that only the quantised checkpoint has. scales  the weights that have one"""
        return frozenset({weight + self.suffix for weight in scales} | {name for name in base if name.endswith(self.beside)})


def declared(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The one quantisation that a configuration declares, at whatever level; raises CheckpointError where two differ."""
    found = [value for value in _every(config) if value]
    if any(value != found[0] for value in found):
        raise CheckpointError(f"config.json declares {len(found)} quantisations that differ. {NOTHING_WRITTEN}")
    if found and not isinstance(found[0], dict):
        raise CheckpointError(f"config.json: quantization_config is no object but {found[0]!r}. {NOTHING_WRITTEN}")
    return found[0] if found else None


def _every(config: Mapping[str, Any]) -> list[Any]:
    own = [config[key] for key in DECLARED_IN if key in config]
    return own + [value for key, inner in config.items() if isinstance(inner, dict) and key not in DECLARED_IN for value in _every(inner)]


@lru_cache(4096)  # there are a few shapes, and 45,000 weights
def _grid(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """The shape that the scales of one weight have: a number per block, and per matrix of a stack."""
    counts = [-(-length // size) if size else 1 for length, size in zip(shape[-2:], block, strict=False)]
    return _without_ones((*shape[:-2], *counts))


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(length for length in shape if length != 1)
