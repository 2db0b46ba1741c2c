"""Ways to merge rightly: this project's engine, PEFT's two paths, and the textbook's formula in several orders and precisions."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

import merge
from exam.cases import edit, read
from exam.families import DTYPES, load, quiet

PREFIX, A_SUFFIX, B_SUFFIX = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
Add = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # (what W has become so far, A, B, scaling) → with this delta added


@dataclass(frozen=True, slots=True)
class Inputs:
    """What one merge is made from.

    dtype     of most of the base: what another output dtype replaces
    deltas    disk key → (A, B, scaling) of each adapter, weight included      replaced  disk key → the adapter's tensor
    flipped   the base stores (in, out)
    """

    base: Path
    dtype: str
    adapters: tuple[Path, ...]
    weights: tuple[float, ...]
    deltas: Mapping[str, tuple[tuple[Tensor, Tensor, float], ...]]
    replaced: Mapping[str, Tensor]
    flipped: bool

    @property
    def touched(self) -> set[str]:
        return {*self.deltas, *self.replaced}


def read_inputs(
    base: Path,
    dtype: str,
    adapters: tuple[Path, ...],
    weights: tuple[float, ...],
    scalings: Sequence[Mapping[str, float]],
    *,
    flipped: bool,
) -> Inputs:
    """What the adapters' files say, module path by module path; every family here calls its modules on disk as in memory."""
    deltas: dict[str, tuple[tuple[Tensor, Tensor, float], ...]] = defaultdict(tuple)
    replaced: dict[str, Tensor] = {}
    for adapter, weight, factors in zip(adapters, weights, scalings, strict=True):
        pickle = adapter / "adapter_model.bin"
        held = torch.load(pickle, weights_only=True) if pickle.exists() else load_file(adapter / "adapter_model.safetensors")
        for name, tensor in held.items():
            path = name.removeprefix(PREFIX)
            if name.endswith(A_SUFFIX):
                module = path.removesuffix(A_SUFFIX)
                deltas[f"{module}.weight"] += ((tensor, held[name.replace(A_SUFFIX, B_SUFFIX)], weight * factors[module]),)
            elif not name.endswith(B_SUFFIX):
                replaced[path] = tensor
    return Inputs(base, dtype, adapters, weights, dict(deltas), replaced, flipped)


Producer = Callable[[Inputs, Path, str], int]  # (inputs, OUT, output dtype) → untouched tensors that are not the producer's own


def engine(inputs: Inputs, out: Path, output: str) -> int:
    """This project's own."""
    (adapter,) = inputs.adapters
    merge.merge(inputs.base, adapter, out, output_dtype=output, workers=1)
    return 0


def peft(*, safe: bool) -> Producer:
    """merge_and_unload. Factors stored in bf16 are kept in bf16 on a bf16 base, as users of large models do.

    Without its autocast PEFT casts the factors to the base's dtype when it loads them: from bf16 to fp16 small ones are lost, and what
    comes out is no merge of this adapter.
    """

    def produce(inputs: Inputs, out: Path, _: str) -> int:
        from peft import PeftModel
        from peft.tuners.lora.layer import LoraLayer

        half = inputs.dtype == "bf16" and any(A.dtype == torch.bfloat16 for parts in inputs.deltas.values() for A, _, _ in parts)
        names = [f"adapter_{number}" for number in range(len(inputs.adapters))]
        with quiet():
            options = {"autocast_adapter_dtype": not half}
            model = PeftModel.from_pretrained(load(inputs.base, inputs.dtype), inputs.adapters[0], adapter_name=names[0], **options)
            for name, adapter in zip(names[1:], inputs.adapters[1:], strict=True):
                model.load_adapter(adapter, adapter_name=name, **options)
            for module in model.modules():
                if isinstance(module, LoraLayer):
                    for name, weight in zip(names, inputs.weights, strict=True):
                        module.scaling[name] *= weight
            saved = out.with_name("peft")
            model.merge_and_unload(safe_merge=safe, adapter_names=names).save_pretrained(saved)
        made = {key: tensor for tensors in read(saved).values() for key, tensor in tensors.items()}
        shutil.rmtree(saved)
        return _in_the_base_s_layout(inputs, made, out)

    return produce


def _in_the_base_s_layout(inputs: Inputs, made: Mapping[str, Tensor], out: Path) -> int:
    """The base's shards with the values of `made`; returns how many tensors `made` lacks or holds in another dtype."""
    shutil.copytree(inputs.base, out)
    foreign = 0

    def value(key: str, W: Tensor) -> Tensor:
        nonlocal foreign
        if key in inputs.touched:
            return made[key].to(W.dtype)
        if key in made and made[key].dtype == W.dtype:
            return made[key]
        foreign += 1
        return W

    edit(out, value)
    return foreign


def nearest(exact: Tensor, dtype: torch.dtype) -> Tensor:
    return exact.to(dtype)


def by_chance(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Up or down to a neighbour on the grid, the nearer the likelier: stochastic rounding. float64 in."""
    near = exact.to(dtype)
    below = torch.where(near.double() > exact, torch.nextafter(near, torch.full_like(near, -torch.inf)), near)
    above = torch.nextafter(below, torch.full_like(near, torch.inf))
    share = (exact - below.double()) / (above.double() - below.double())
    chance = torch.rand(exact.shape, generator=torch.Generator().manual_seed(exact.numel()), dtype=torch.float64)
    return torch.where(chance < share, above, below)


def textbook(precision: torch.dtype, add: Add, rounded: Callable[[Tensor, torch.dtype], Tensor] = nearest) -> Producer:
    """W + Σ s·B·A, added up in one precision, rounded once."""

    def produce(inputs: Inputs, out: Path, output: str) -> int:
        shutil.copytree(inputs.base, out)
        target = DTYPES[inputs.dtype if output == "same" else output]

        def value(key: str, W: Tensor) -> Tensor:
            stored = target if W.dtype == DTYPES[inputs.dtype] else W.dtype
            if key in inputs.replaced:
                return inputs.replaced[key].to(stored)
            exact = W.to(precision).T if inputs.flipped and key in inputs.deltas else W.to(precision)
            for A, B, scaling in inputs.deltas.get(key, ()):
                exact = add(exact, A.to(precision), B.to(precision), scaling)
            return rounded(exact.T if inputs.flipped and key in inputs.deltas else exact, stored).contiguous()

        edit(out, value)
        if output != "same":
            path = out / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": str(target).removeprefix("torch.")}))
        return 0

    return produce


def plain(W: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    return W + scaling * (B @ A)


def scaled_first(W: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    return W + (scaling * B) @ A


def rank_by_rank(W: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    for row, column in zip(A, B.T, strict=True):
        W = W + torch.outer(column * scaling, row)
    return W


PRODUCERS: Mapping[str, Producer] = {
    "engine": engine,
    "PEFT": peft(safe=False),
    "PEFT safe": peft(safe=True),
    "float64": textbook(torch.float64, plain),
    "rank by rank": textbook(torch.float32, rank_by_rank),
    "(sB)A": textbook(torch.float32, scaled_first),
    "stochastic": textbook(torch.float64, plain, by_chance),
}
CRITERIA: Mapping[str, str] = dict.fromkeys(PRODUCERS, "nearest") | {"PEFT": "peft", "PEFT safe": "peft", "stochastic": "faithful"}
RECASTING = ("engine", "float64")  # the producers that can write another dtype
ONE_ONLY = ("engine",)  # the producers that cannot merge several adapters
