"""The formulas of every other kind of LoRA, held against PEFT's own layers in float64: each toy module answers as its recipe says.

A module is wrapped by PEFT, its numbers are drawn by chance, and its unmerged forward is asked for the weight that it acts with: on the
unit inputs for a map, by the difference of two answers for a bias. The recipe's numbers are those that PEFT itself would save.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from certify.errors import CertifyError
from certify.expect.expectation import Cut, Expectation, Part, Region
from certify.expect.place import Orientation
from certify.expect.skeleton import quiet
from certify.expect.target import Target
from certify.grid import Grid
from certify.inputs.adapter import AdapterTensor

RANK, ALPHA = 2, 3
SCALING = ALPHA / RANK
U64 = 2.0**-53
NAME = "toy"
DEFAULT = "default"


@dataclass(frozen=True)
class Toy:
    """make: the module; weight: what its answers say it acts with; recipe: from the base's weight and PEFT's saved tensors."""

    name: str
    make: Callable[[], nn.Module]
    options: dict[str, Any]
    weight: Callable[[Any], Tensor]
    recipe: Callable[[Tensor, dict[str, AdapterTensor]], Expectation]


class Experts(nn.Module):
    """Three matrices in one parameter, each applied as (out, in), or (in, out) where it is `is_transposed`."""

    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        self.weight, self.is_transposed = nn.Parameter(torch.zeros(3, 4, 5)), turned

    def forward(self, _: Tensor) -> Tensor:
        return self.weight


def hold_kinds() -> None:
    """Raises CertifyError, with the kind in it, where PEFT's layer is not what the recipe says."""
    for toy in _toys():
        with quiet(), torch.random.fork_rng(devices=[]):  # PEFT draws numbers, which are then replaced; an accelerator is not asked
            live, base, saved = _wrapped(toy)
            with torch.no_grad():
                acted = toy.weight(live)
        expectation = toy.recipe(base, {name: _held(value) for name, value in saved.items()})
        target = Target(expectation, "nearest")
        exact = torch.cat([block.bound(Grid(torch.float32), "nearest").exact for block in target.blocks()]).reshape(expectation.shape)
        room = 64 * U64 * exact.abs().max()  # sums of at most 8 terms of this size, on both sides
        if not bool(((acted - exact).abs() <= room).all()):
            raise CertifyError(
                f"PEFT's layer ({toy.name}) is not what the gate's recipe says: off by {float((acted - exact).abs().max()):.3g}"
            )


def _wrapped(toy: Toy) -> tuple[Any, Tensor, dict[str, Tensor]]:
    """(PEFT's model around the toy, the base's weight, what PEFT saves): every number a float32, all computed in float64."""
    import peft

    root = nn.Module()
    root.add_module(NAME, toy.make().double())
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, **({"target_modules": [NAME]} | toy.options))
    live, chance = peft.inject_adapter_in_model(config, root, DEFAULT), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in live.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=chance).float())
    live.double().eval()
    saved = {name.removeprefix(f"{NAME}."): tensor for name, tensor in peft.get_peft_model_state_dict(live).items()}
    layer = live.get_submodule(NAME)
    base = layer.get_base_layer().weight.detach().clone()
    return layer, base, saved


def _toys() -> Iterator[Toy]:
    eye = torch.eye(5, dtype=torch.float64)
    tokens = torch.arange(6)
    dora = {"use_dora": True}

    def linear(layer: Any) -> Tensor:
        return _bare(layer(eye) - layer(torch.zeros_like(eye))).T

    def conv1d(layer: Any) -> Tensor:
        return _bare(layer(eye) - layer(torch.zeros_like(eye)))

    yield Toy("DoRA, linear", lambda: nn.Linear(5, 4), dora, linear, lambda w, t: _pair(w, t, "out,in"))
    yield Toy("DoRA, Conv1D", lambda: Conv1D(4, 5), dora | {"fan_in_fan_out": True}, conv1d, lambda w, t: _pair(w, t, "in,out"))
    for name, more in (("embedding", {}), ("DoRA, embedding", dora)):
        yield Toy(name, lambda: nn.Embedding(6, 4), more, lambda layer: _bare(layer(tokens)), _embedding)
    for name, more in (("convolution", {}), ("DoRA, convolution", dora)):
        yield Toy(name, lambda: nn.Conv2d(2, 4, 3), more, _kernel, lambda w, t: _pair(w, t, "out,in", columns=18))
    options: dict[str, Any] = {"target_modules": [], "target_parameters": [f"{NAME}.weight"]}
    for turned in (False, True):
        orientation: Orientation = "in,out" if turned else "out,in"
        yield Toy(f"experts, {orientation}", lambda turned=turned: Experts(turned=turned), options, lambda layer: _bare(layer(eye)),  # type: ignore[misc]
                  lambda w, t, orientation=orientation: _experts(w, t, orientation))  # type: ignore[misc]  # fmt: skip


def _bare(value: Tensor) -> Tensor:
    return value.detach()


def _kernel(layer: Any) -> Tensor:
    """The kernel that a convolution acts with: its answers to single ones, mirrored by nobody (PyTorch correlates)."""
    unit = torch.eye(18, dtype=torch.float64).reshape(18, 2, 3, 3)
    return _bare(layer(unit) - layer(torch.zeros_like(unit))).reshape(18, 4).T.reshape(4, 2, 3, 3)


def _pair(weight: Tensor, saved: dict[str, AdapterTensor], orientation: Orientation, columns: int | None = None) -> Expectation:
    a, b = saved["lora_A.weight"], saved["lora_B.weight"]
    return _recipe(weight, Part(a, b, RANK, SCALING, orientation), saved, "rows" if orientation == "out,in" else "columns", columns)


def _embedding(weight: Tensor, saved: dict[str, AdapterTensor]) -> Expectation:
    part = Part(saved["lora_embedding_A"], saved["lora_embedding_B"], RANK, SCALING, "in,out")
    return _recipe(weight, part, saved, "columns", None)


def _recipe(weight: Tensor, part: Part, saved: dict[str, AdapterTensor], along: Any, columns: int | None) -> Expectation:
    width = columns or weight.shape[-1]
    magnitude = saved.get("lora_magnitude_vector")
    return Expectation(_held(weight), width, (Region(0, weight.numel() // width, (part,)),), magnitude, along)


def _experts(weight: Tensor, saved: dict[str, AdapterTensor], orientation: Orientation) -> Expectation:
    a, b, height = saved["lora_A.weight"], saved["lora_B.weight"], weight.shape[1]
    regions = tuple(
        Region(e * height, (e + 1) * height, (Part(a, b, RANK, SCALING, orientation, Cut(e, len(weight))),)) for e in range(len(weight))
    )
    return Expectation(_held(weight), weight.shape[2], regions)


def _held(value: Tensor) -> AdapterTensor:
    return AdapterTensor("F32", tuple(value.shape), value.detach().float())
