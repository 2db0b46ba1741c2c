"""One part of a model, run on given arguments in any version of its weights."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from certify.layers.answers import EXPERTS, OUTPUT, ROUTING, Answer, first_tensor
from certify.layers.lazy import Lazy
from certify.layers.routing import force, observe, routers, stacks
from certify.layers.weights import Version, Weights

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Weight:
    """The source of one lazy parameter, or of one expert of it."""

    weights: Weights
    parameter: str
    number: int | None = None

    def load(self, rows: slice | None = None) -> Tensor:
        return self.weights.load(self.parameter, self.number, rows)

    def expert(self, number: int) -> "Weight":
        return Weight(self.weights, self.parameter, number)

    def answer(self, inputs: Tensor) -> Tensor | None:
        return None if self.number is None else self.weights.answer(self.parameter, self.number, inputs)


class Unit:
    """A module of the model by its path; "" is the whole model. `skeleton` stays on the meta device; copies of it are run."""

    def __init__(self, path: str, skeleton: nn.Module, weights: Weights) -> None:
        self.path, self.skeleton, self.weights = path, copy.deepcopy(skeleton), weights
        self.parameters = [name for name, _ in (*self.skeleton.named_parameters(), *self.skeleton.named_buffers())]
        self.keys = {key for name in self.parameters for key in self._keys(name)}
        self.experts = stacks(self.skeleton)
        self._plain: nn.Module | None = None

    @property
    def touched(self) -> set[str]:
        """Disk keys that the adapters change."""
        return self.keys & self.weights.ledger.touched

    @property
    def unfit(self) -> str:
        """Why the base's own tensors cannot fill it; empty where they can."""
        held, layout = self.weights.base.tensors, self.weights.layout
        for name, tensor in (*self.skeleton.named_parameters(), *self.skeleton.named_buffers()):
            filling = layout.filling(self._full(name))
            if tensor.is_meta and filling is None:
                return f"no tensor of the base fills {self._full(name)}"
            if filling is not None and len(filling.keys) == 1 and held[filling.keys[0]].shape != tensor.shape:
                return f"{filling.keys[0]} of the base has the shape {held[filling.keys[0]].shape}, the model's is {tuple(tensor.shape)}"
        return ""

    @property
    def longest(self) -> int:
        """Of the sums that the unit's products are."""
        return max((max(p.shape) for p in self.skeleton.parameters() if p.dim()), default=1)

    @cached_property
    def routers(self) -> dict[str, int]:
        """Path → number of experts that it scores."""
        return routers(self.skeleton, self.experts)

    @cached_property
    def keys_of_experts(self) -> dict[str, list[set[str]]]:
        """Measure → the disk keys of each expert; a tensor that holds all is everybody's; an expert may have none."""
        found = {}
        for path, count in self.experts.items():
            names = [self._full(f"{path}.{leaf}") for leaf, _ in self.skeleton.get_submodule(path).named_parameters(recurse=False)]
            fillings = [f for name in names if (f := self.weights.layout.filling(name)) is not None]
            members = [{key for f in fillings for key in f.of_expert(number)} for number in range(count)]
            found[f"{EXPERTS} {path}"] = members
        return found

    def groups(self) -> list[frozenset[str]]:
        """What may be missing from a merge on its own: one adapted tensor, or the same part of every expert."""
        stacked: dict[tuple[str, int], set[str]] = {}
        for name in self.parameters:
            filling = self.weights.layout.filling(self._full(name))
            for expert in filling.experts if filling else ():
                for part, key in enumerate(expert):
                    stacked.setdefault((name, part), set()).add(key)
        grouped = [frozenset(keys & self.touched) for keys in stacked.values() if keys & self.touched]
        single = self.touched - {key for keys in grouped for key in keys}
        return [*(frozenset({key}) for key in sorted(single)), *grouped]

    def answer(self, version: Version, call: Call, reference: Answer | None = None) -> Answer:
        """Run it. Experts are asked one by one on what the experts of `reference` (else of this run) were given."""
        self.weights.version = version
        root = self._injected() if version.kind == "unmerged" else self._bare()
        with torch.no_grad(), observe(root.get_submodule("unit"), self.experts, self.routers) as observed:
            output = root.unit(*call[0], **call[1])  # type: ignore[operator]
        output_rows = first_tensor(output)
        measures = {OUTPUT: output_rows.reshape(-1, output_rows.shape[-1]).float()}
        measures |= {f"{ROUTING} {path}": scores for path, scores in observed.scores.items()}
        for path, given in (reference.observed if reference else observed).calls.items():
            with torch.no_grad():
                forced = force(root.unit.get_submodule(path), self.experts[path], given)  # type: ignore[union-attr]
            if forced is not None:
                measures[f"{EXPERTS} {path}"] = forced
        return Answer(output, measures, observed)

    def forget(self) -> None:
        """Drop the copies."""
        self._plain = None

    def _bare(self) -> nn.Module:
        if self._plain is None:
            self._plain = self._placed(nn.Module(), copy.deepcopy(self.skeleton))
        return self._plain

    def _injected(self) -> nn.Module:
        """A copy with PEFT's own layers around the modules that were adapted."""
        unmerged, layout = self.weights.unmerged, self.weights.layout
        root = nn.Module()
        root.unit = copy.deepcopy(self.skeleton)
        modules = {}
        for key in sorted(self.keys & unmerged.trained.keys()):
            if not f"{layout.all[key].parameter}.".startswith(f"{self.path}." if self.path else ""):
                continue  # a head that is tied to what was adapted elsewhere: W + Δ is read
            inner = layout.all[key].parameter.removeprefix(self.path).strip(".").split(".")
            path = ".".join(["unit", *inner[:-1]])
            if not layout.all[key].fused and is_linear(root.get_submodule(path)):
                modules[path] = key
        self.weights.wrapped = set(modules.values())
        unmerged.inject(root, modules, self.weights.meter)
        return self._placed(root, root.unit)

    def _placed(self, root: nn.Module, unit: nn.Module) -> nn.Module:
        root.unit = unit
        place(unit, self.path, self.weights)
        return root

    def _full(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def _keys(self, name: str) -> tuple[str, ...]:
        filling = self.weights.layout.filling(self._full(name))
        return filling.keys if filling else ()


def place(module: nn.Module, path: str, weights: Weights) -> None:
    """Makes every parameter and buffer of a module that lies on disk lazy. path: of the module in the model."""
    for inner, part in module.named_modules():
        for held in (part._parameters, part._buffers):
            for leaf, tensor in list(held.items()):
                name = ".".join(step for step in (*path.split("."), *inner.split("."), leaf) if step and step != "base_layer")
                if tensor is not None and tensor.is_meta and weights.layout.filling(name) is not None:
                    lazy = held[leaf] = Lazy.make(tensor.shape, tensor.dtype, Weight(weights, name))
                    lazy._is_param = held is part._parameters


def is_linear(module: nn.Module) -> bool:
    """Whether a module on the meta device answers a matrix with a matrix: PEFT's layer cannot stand around a router that answers more."""
    try:
        weight: Any = module.weight
        inputs = weight.shape[0] if isinstance(module, Conv1D) else weight.shape[1]
        return isinstance(module(torch.empty(1, inputs, device="meta")), Tensor)
    except Exception:  # whatever a module's own forward asks for besides its input
        return False
