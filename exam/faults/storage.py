"""Every rounding is right, and the fine-tune is gone: what only C8 can tell."""

import shutil
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from exam.cases import Case, double, expected_deltas, merge_into, read
from exam.faults.registry import in_files

SHARE_OF_STEP = 1 / 64  # ‖Δ‖/‖W‖ in steps of the stored grid: a few per cent of Δ survive one rounding
LOUD, QUIET = 2.0, 1 / 16  # the same: well above the grid, and below it but where chance alone would not explain the loss


def resized(case: Case, steps: dict[str, float], usual: float) -> None:
    """Adapter and sound merge again, ‖Δ‖/‖W‖ so many steps of the stored grid; `steps`: a part of a name → its own number."""
    path = case.adapter / "adapter_model.safetensors"
    held = {key: tensor for tensors in read(case.base).values() for key, tensor in tensors.items()}
    factors = {}
    for key, (A, B, s, _) in case.deltas.items():
        W = held[key].double()
        wanted = next((value for part, value in steps.items() if part in key), usual)
        eps = torch.finfo(held[key].dtype).eps
        norm = (s * (B.double() @ A.double())).norm()
        factors[key.removesuffix(".weight")] = float(wanted * eps * W.norm() / norm) if norm > 0 else 1.0
    tensors = load_file(path)
    stems = {name: name.removeprefix("base_model.model.").removesuffix(".lora_B.weight") for name in tensors if "lora_B" in name}
    save_file({name: tensor * factors.get(stems.get(name, ""), 1.0) for name, tensor in tensors.items()}, path)
    shutil.rmtree(case.merged)
    own = Case(case.base, case.adapter, case.merged)
    expected_deltas(own, conv=next(iter(case.deltas.values()))[3])
    merge_into(own, case.merged, double)


def below_the_grid(case: Case) -> dict[str, Any]:
    resized(case, {}, SHARE_OF_STEP)
    return {"min_retention": 0.5}


def one_module_hidden_in_the_mean(case: Case, quiet: str) -> dict[str, Any]:
    """Nearest rounding sold as faithful: the whole keeps its delta, one module has lost it."""
    resized(case, {quiet: QUIET}, LOUD)
    return {"criterion": "faithful", "min_retention": 0.5}


@in_files("deepseek", C8="adapter", seen="peft#1388, peft#2502, torchtune#1101, unsloth#3091")
def fine_tune_below_the_grid(case: Case) -> dict[str, Any]:
    return below_the_grid(case)


@in_files("gpt2", C8="adapter")
def fine_tune_below_the_grid_stored_in_out(case: Case) -> dict[str, Any]:
    return below_the_grid(case)


@in_files("deepseek", C8="*o_proj.weight")
def attention_lost_among_loud_modules(case: Case) -> dict[str, Any]:
    return one_module_hidden_in_the_mean(case, "layers.1.self_attn.o_proj")


@in_files("deepseek", C8="*experts.1.up_proj.weight")
def one_expert_lost_among_loud_modules(case: Case) -> dict[str, Any]:
    return one_module_hidden_in_the_mean(case, "layers.1.mlp.experts.1.up_proj")


@in_files("deepseek", C8="lm_head.weight")
def head_lost_among_loud_modules(case: Case) -> dict[str, Any]:
    return one_module_hidden_in_the_mean(case, "lm_head")
