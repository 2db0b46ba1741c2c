"""The adapter as it was trained: PEFT's own layers around the base's, unmerged, wherever the adapter's file names a module.

PEFT's own loader is no witness, since it loses tensors without a word (older adapters of experts). So its layers are injected into one unit
at a time, by the names in the file; PEFT reads ranks and factors from the adapter's configuration by its own rules. Experts that today's
transformers stacks were linear modules when the adapter was trained: each of them answers through a PEFT layer of its own.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from certify.bounds import Delta
from certify.errors import NotInterpretedError
from certify.expect.expectation import Part, factors
from certify.expect.ledger import Ledger
from certify.expect.oracle import unmerged
from certify.expect.skeleton import quiet
from certify.inputs.adapter import Adapter
from certify.layers.meter import Meter


@dataclass(frozen=True, slots=True)
class Trained:
    """One module's A and B. alpha and rslora as PEFT reads them for this module; weight: the user's factor for the adapter."""

    part: Part
    adapter: int
    alpha: float
    rslora: bool
    weight: float

    def delta(self) -> Delta:
        """Its factors, with PEFT's own reading of the scaling."""
        read, scaling = factors(self.part), self.alpha / (math.sqrt(self.part.rank) if self.rslora else self.part.rank)
        return Delta(read.left, read.right, scaling * self.weight, read.dtype)


class Unmerged:
    """Every adapted tensor by its disk key, with the adapters that were trained on it."""

    def __init__(self, adapters: Sequence[Adapter], weights: Sequence[float], ledger: Ledger) -> None:
        numbers = {id(tensor): number for number, adapter in enumerate(adapters) for tensor in adapter.tensors.values()}
        self.trained: dict[str, tuple[Trained, ...]] = {}
        for key, parts in ledger.parts.items():
            found = [(part, numbers[id(part.a)]) for part in parts]
            self.trained[key] = tuple(
                Trained(part, number, *_terms(adapters[number].config, part.path), weights[number]) for part, number in found
            )

    def expert(self, key: str, weight: Tensor, inputs: Tensor) -> Tensor:
        """The answer of one linear map that is part of a stack."""
        return unmerged(inputs, weight, [trained.delta() for trained in self.trained[key]], "out,in")

    def inject(self, root: nn.Module, modules: Mapping[str, str], meter: Meter) -> None:
        """PEFT's layers in `root`, whose modules (path → disk key) are on the meta device; A and B become real, in float32."""
        by_adapter: dict[int, dict[str, Trained]] = {}
        for path, key in modules.items():
            for trained in self.trained[key]:
                by_adapter.setdefault(trained.adapter, {})[path] = trained
        for number, members in by_adapter.items():
            for rslora in {trained.rslora for trained in members.values()}:
                _inject(root, str(number), {path: trained for path, trained in members.items() if trained.rslora == rslora}, rslora, meter)
        for path in modules:
            layer: Any = root.get_submodule(path)
            layer.set_adapter([str(trained.adapter) for trained in self.trained[modules[path]]])


def _inject(root: nn.Module, name: str, members: Mapping[str, Trained], rslora: bool, meter: Meter) -> None:
    import peft
    from peft.tuners.lora import LoraLayer

    config = peft.LoraConfig(
        target_modules=list(members),
        rank_pattern={f"^{re.escape(path)}": trained.part.rank for path, trained in members.items()},
        alpha_pattern={f"^{re.escape(path)}": trained.alpha for path, trained in members.items()},
        use_rslora=rslora,
    )
    with quiet():
        peft.inject_adapter_in_model(config, root, name, low_cpu_mem_usage=True)
    for path, trained in members.items():
        layer: Any = root.get_submodule(path)
        if not isinstance(layer, LoraLayer) or name not in layer.lora_A:
            raise NotInterpretedError(f"PEFT has no layer for {path}")
        read = trained.delta()
        a, b = (read.right, read.left) if trained.part.orientation == "out,in" else (read.left.T, read.right.T)
        for held, factor in ((layer.lora_A, a), (layer.lora_B, b)):
            held[name].weight = nn.Parameter(factor.contiguous(), requires_grad=False)
            meter.hold(held[name].weight)
        layer.scaling[name] *= trained.weight
    root.eval()


def _terms(config: dict[str, Any], path: str) -> tuple[float, bool]:
    """(alpha, rslora) by PEFT's own rule; the rank is that of the tensors, which the ledger has held against the configuration.

    path: of the module; of the parameter itself where that was trained
    """
    from peft.utils.other import get_pattern_key

    pattern = config.get("alpha_pattern") or {}
    alpha = pattern.get(get_pattern_key(list(pattern), path), config.get("lora_alpha", 8))
    return float(alpha), config.get("use_rslora") is True
