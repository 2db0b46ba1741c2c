"""The behaviour witness: PEFT's own LoRA layer, unmerged, on one module or on some of the rows that its weight is stored in."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from certify.bounds import Delta
from certify.errors import CertifyError
from certify.expect.place import Orientation
from certify.expect.skeleton import quiet

TOY = {"square": (12, 12), "tall": (20, 9), "wide": (9, 20)}  # (out, in) per shape class, of the layer in float64
U64 = 2.0**-53  # unit roundoff of float64


def unmerged(inputs: Tensor, weight: Tensor, deltas: Sequence[Delta], orientation: Orientation) -> Tensor:
    """What peft.tuners.lora.Linear answers, with every delta as an active adapter of its own.

    inputs (n, in)     weight, and the factors of the deltas, as the tensor is stored: (out, in), or (in, out) for Conv1D
    returns (n, out)   all of one float dtype
    """
    answer: Tensor = _layer(weight, deltas, orientation)(inputs)
    return answer


def peft_merged(weight: Tensor, delta: Delta, orientation: Orientation) -> Tensor:
    """The weight that the same layer stores when PEFT itself merges it."""
    layer = _layer(weight.clone(), [delta], orientation)
    with quiet():
        layer.merge()
    merged: Tensor = layer.get_base_layer().weight.detach()
    return merged


def textbook(inputs: Tensor, weight: Tensor, deltas: Sequence[Delta], orientation: Orientation) -> Tensor:
    """y = x Wᵀ + Σ s·(x Aᵀ)Bᵀ: Hu et al. 2021, arXiv:2106.09685, eq. 3; W, B·A transposed where the tensor is stored (in, out)."""
    if orientation == "out,in":
        return inputs @ weight.T + sum((inputs @ d.right.T) @ d.left.T * d.scaling for d in deltas)
    return inputs @ weight + sum((inputs @ d.left) @ d.right * d.scaling for d in deltas)


@cache
def hold_formula(orientation: Orientation, shape: str, ranks: tuple[int, ...], scalings: tuple[float, ...]) -> None:
    """PEFT's layer in float64 is the textbook formula; asked once per kind of module, shape class and configuration.

    Each output is a sum of in + Σ rank products: 4·(in + Σ(rank + 4))·2⁻⁵³ of the sum of their magnitudes (Higham §3.1, both sides).
    Raises CertifyError where it is not: then the gate has no witness.
    """
    chance = torch.Generator().manual_seed(0)
    out, into = TOY[shape]
    height, width = (out, into) if orientation == "out,in" else (into, out)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=chance, dtype=torch.float64)

    pairs = zip(ranks, scalings, strict=True)
    deltas = [Delta(normal(height, rank), normal(rank, width), scaling, torch.float64) for rank, scaling in pairs]
    inputs, weight = normal(5, into), normal(height, width)
    sizes = [Delta(d.left.abs(), d.right.abs(), abs(d.scaling), d.dtype) for d in deltas]
    room = textbook(inputs.abs(), weight.abs(), sizes, orientation).mul_(4 * U64 * (into + sum(rank + 4 for rank in ranks)))
    off = unmerged(inputs, weight, deltas, orientation) - textbook(inputs, weight, deltas, orientation)
    if not bool((off.abs() <= room).all()):
        raise CertifyError(f"PEFT's layer ({orientation}, {shape}, ranks {ranks}, scalings {scalings}) is not W + Σ s·B·A")


def shape_class(rows: int, columns: int) -> str:
    """Of a matrix as the module sees it."""
    return "square" if rows == columns else "tall" if rows > columns else "wide"


def _layer(weight: Tensor, deltas: Sequence[Delta], orientation: Orientation) -> Any:
    """The layer, made without storage and then given ours; nothing is initialised or copied."""
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    flipped = orientation == "in,out"
    out, into = weight.shape[::-1] if flipped else weight.shape
    names = [str(number) for number in range(len(deltas))]
    with quiet(), torch.device("meta"):
        base = Conv1D(out, into) if flipped else nn.Linear(into, out, bias=False)
        plain = [LoraConfig(r=d.rank, lora_alpha=d.rank, fan_in_fan_out=flipped, init_lora_weights=False) for d in deltas]
        layer = Linear(base, "0", plain[0], r=deltas[0].rank, lora_alpha=deltas[0].rank, is_target_conv_1d_layer=flipped)
        for name, config in zip(names[1:], plain[1:], strict=True):
            layer.update_layer(name, r=config.r, lora_alpha=config.r, config=config)
    for name, delta in zip(names, deltas, strict=True):
        a, b = (delta.left.T, delta.right.T) if flipped else (delta.right, delta.left)
        layer.lora_A[name].weight, layer.lora_B[name].weight = _fixed(a), _fixed(b)
        layer.scaling[name] = delta.scaling
    layer.set_adapter(names, inference_mode=True)
    base.weight = _fixed(weight)
    if flipped:
        base.bias = _fixed(torch.zeros(out, dtype=weight.dtype))
    return layer.eval()


def _fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
