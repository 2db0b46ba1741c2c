"""Biases: `lora_bias` adds scaling · lora_B.bias; `bias="all"` and `"lora_only"` save whole trained biases, which take the base's place."""

from collections.abc import Iterator, Mapping

from merge.adapters import lora
from merge.adapters.config import Settings
from merge.adapters.contract import Addend, Replacement, strip, unwrapped
from merge.catalog import Tensor

ADDED = ".lora_B.bias"
PACKED = ".in_proj_bias"  # of nn.MultiheadAttention


def claim(settings: Settings, tensors: Mapping[str, Tensor]) -> Iterator[Addend | Replacement]:
    """One contribution per bias."""
    if settings.lora_bias:
        for path, (a, tensor) in lora.pairs(tensors, lora.A, ADDED).items():
            module = unwrapped(path)
            yield Addend((f"{module}.bias", f"{module}{PACKED}"), tensor, settings.scaling(module, a.shape[0]))
    if settings.bias != "none":
        for name, tensor in tensors.items():
            module, _, leaf = strip(name).rpartition(".")
            if settings.may_train_bias(name) and ".lora_" not in name and not settings.saves(unwrapped(module)):
                yield Replacement((f"{unwrapped(module)}.{leaf}",), tensor)
