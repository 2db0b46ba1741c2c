"""`target_parameters`: LoRA on parameters that belong to no linear layer, such as all experts of a layer in one tensor.

lora_A  (experts · rank, in)  expert after expert      lora_B  (out, rank · experts)  rank after rank
"""

from collections.abc import Iterator, Mapping

from merge.adapters import lora
from merge.adapters.config import Settings
from merge.adapters.contract import WRAPPED, Stacked, unwrapped
from merge.catalog import Tensor


def claim(settings: Settings, tensors: Mapping[str, Tensor]) -> Iterator[Stacked]:
    """One contribution per pair whose module has a parameter that the configuration targets."""
    if settings.parameters:
        for path, (a, b) in lora.pairs(tensors, lora.A, lora.B).items():
            names = targeted(settings, unwrapped(path))
            if names:
                yield Stacked(names, path.split(".").count(WRAPPED), a, b)


def targeted(settings: Settings, module: str) -> tuple[str, ...]:
    """The parameters of one module that `target_parameters` may name; sorted, since the saved list has no order of its own.

    A name without a module, as PEFT writes for fused experts that were targeted by today's or older module names, is one of every module
    that has such a parameter, unless the module is adapted as a whole.
    """
    owners = ((name.rpartition(".")[0], name.rpartition(".")[2]) for name in settings.parameters)
    whole = bool(settings.parameters) and settings.targets(module)
    return tuple(sorted({f"{module}.{leaf}" for owner, leaf in owners if _is_of(owner, module, whole=whole)}))


def _is_of(owner: str, module: str, *, whole: bool) -> bool:
    return not whole if not owner else module == owner or f".{module}".endswith(f".{owner}")
