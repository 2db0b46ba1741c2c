"""Whole adapters, or large parts of them, that were ignored, exchanged or read wrongly; and adapters that are not whole."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from exam.cases import Case, edit, read
from exam.faults.registry import in_files

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
EXPERTS = "model.layers.1.mlp.experts."
TOUCHED = "*.weight"


def base_of(case: Case) -> dict[str, Tensor]:
    return {key: tensor for tensors in read(case.base).values() for key, tensor in tensors.items()}


def rewrite_adapter(directory: Path, change: Callable[[str, Tensor], Tensor | None]) -> None:
    tensors = load_file(directory / ADAPTER)
    kept = {name: new.contiguous() for name, tensor in tensors.items() if (new := change(name, tensor)) is not None}
    save_file(kept, directory / ADAPTER)


def configure(directory: Path, **changes: Any) -> None:
    path = directory / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def unmerge(case: Case, chosen: Callable[[str], bool]) -> None:
    """The chosen touched tensors as in the base."""
    base = base_of(case)
    edit(case.merged, lambda key, tensor: base[key] if key in case.deltas and chosen(key) else tensor)


def merge_again(case: Case, delta_of: Callable[[str], Tensor | None]) -> None:
    """Touched tensors with these deltas instead, (out, in); None leaves a tensor as it is."""
    base = base_of(case)

    def change(key: str, tensor: Tensor) -> Tensor:
        delta = delta_of(key) if key in case.deltas else None
        return tensor if delta is None else (base[key].float() + delta).to(tensor.dtype)

    edit(case.merged, change)


def delta(case: Case, key: str, factor: float = 1.0) -> Tensor:
    A, B, s, _ = case.deltas[key]
    return s * factor * (B.float() @ A.float())


@in_files("deepseek", C4=TOUCHED, seen="verl#7285, verl#4553, unsloth#611, peft#2586, trl#386")
def merged_directory_is_the_base(case: Case) -> None:
    unmerge(case, lambda _: True)


@in_files("deepseek", C4="*.experts.*", seen="unsloth#5410, zoo#647, zoo#885: experts lost, attention merged")
def experts_ignored(case: Case) -> None:
    unmerge(case, lambda key: ".experts." in key)


@in_files("deepseek", C4="*.experts.*", seen="zoo#779: 57 of 60 expert tensors were the base's")
def all_experts_but_one_ignored(case: Case) -> None:
    unmerge(case, lambda key: ".experts." in key and ".experts.0." not in key)


@in_files("mixtral", C4="*.experts.*", seen="zoo#812, unsloth#5403: names of an older release")
def experts_of_older_names_ignored(case: Case) -> None:
    unmerge(case, lambda key: ".experts." in key)


@in_files("deepseek", C4="*.self_attn.*")
def attention_ignored(case: Case) -> None:
    unmerge(case, lambda key: "self_attn" in key)


@in_files("deepseek", C4="model.layers.2.*")
def last_layer_ignored(case: Case) -> None:
    unmerge(case, lambda key: "layers.2." in key)


@in_files("deepseek", C4=f"{EXPERTS}*.up_proj.weight")
def deltas_of_the_experts_rotated(case: Case) -> None:
    """Expert 1 has the delta of expert 0, and so on: right norms, wrong experts."""
    keys = [f"{EXPERTS}{number}.up_proj.weight" for number in range(4)]
    other = dict(zip(keys, [keys[-1], *keys[:-1]], strict=True))
    merge_again(case, lambda key: delta(case, other[key]) if key in other else None)


@in_files("deepseek", C4=f"{EXPERTS}*.up_proj.weight")
def mean_delta_of_the_experts_on_each(case: Case) -> None:
    keys = [f"{EXPERTS}{number}.up_proj.weight" for number in range(4)]
    mean = torch.stack([delta(case, key) for key in keys]).mean(0)
    merge_again(case, lambda key: mean if key in keys else None)


@in_files("llama", C4="*q_proj.weight", seen="tinker-cookbook, qlora-pipe: rsLoRA ignored")
def rslora_ignored(case: Case) -> None:
    merge_again(case, lambda key: delta(case, key, 1 / math.sqrt(case.deltas[key][0].shape[0])))


@in_files("llama", C4="*down_proj.weight", seen="tinker-cookbook, qlora-pipe: alpha_pattern ignored")
def alpha_pattern_ignored(case: Case) -> None:
    merge_again(case, lambda key: delta(case, key, 6.0) if "down_proj" in key else None)


@in_files("llama", C4="*k_proj.weight")
def rank_pattern_ignored(case: Case) -> None:
    """The scaling of rank 8 on a module of rank 2."""
    merge_again(case, lambda key: delta(case, key, 0.5) if "k_proj" in key else None)


@in_files("deepseek", C4=TOUCHED, seen="swift, mergekit, litgpt: an older result was taken for this one")
def result_of_another_adapter(case: Case) -> None:
    merge_again(case, lambda key: torch.randn_like(delta(case, key)) * delta(case, key).std())


@in_files("deepseek", C4=TOUCHED)
def adapter_trained_on_after_the_merge(case: Case) -> None:
    rewrite_adapter(case.adapter, lambda name, tensor: tensor * 1.05 if "lora_B" in name else tensor)


@in_files("deepseek", C4="*q_prj*")
def adapter_tensor_nobody_consumed(case: Case) -> None:
    stem = "base_model.model.model.layers.0.self_attn.q_prj.lora_"
    more = {f"{stem}A.weight": torch.ones(8, 64), f"{stem}B.weight": torch.ones(64, 8)}
    save_file(load_file(case.adapter / ADAPTER) | more, case.adapter / ADAPTER)


@in_files("deepseek", C4="*", seen="peft#1579, peft#2586: a prefix that matched nothing, and a warning")
def adapter_of_another_prefix_ignored(case: Case) -> None:
    tensors = load_file(case.adapter / ADAPTER)
    save_file({name.replace("base_model.model.", "base_model.module."): tensor for name, tensor in tensors.items()}, case.adapter / ADAPTER)
    unmerge(case, lambda _: True)


@in_files("deepseek", C4="model.layers.1.self_attn.o_proj.weight")
def adapter_lacks_a_module_that_it_targets(case: Case) -> None:
    rewrite_adapter(case.adapter, lambda name, tensor: None if "layers.1.self_attn.o_proj" in name else tensor)
    unmerge(case, lambda key: "layers.1.self_attn.o_proj" in key)


@in_files("deepseek", C4=f"{EXPERTS}0.up_proj.weight")
def adapter_lacks_one_expert(case: Case) -> None:
    rewrite_adapter(case.adapter, lambda name, tensor: None if f"{EXPERTS}0.up_proj" in name else tensor)
    unmerge(case, lambda key: key == f"{EXPERTS}0.up_proj.weight")


@in_files("deepseek", C4="*.self_attn.*", seen="deltalint 0.1.0 passes an adapter with 1 of 21 targets")
def adapter_holds_one_module_only(case: Case) -> None:
    rewrite_adapter(case.adapter, lambda name, tensor: tensor if "lm_head" in name else None)
    unmerge(case, lambda key: "lm_head" not in key)


@in_files("llama", C4="lm_head.weight")
def adapter_lacks_a_module_that_it_saves(case: Case) -> None:
    rewrite_adapter(case.adapter, lambda name, tensor: None if "lm_head" in name else tensor)
    base = base_of(case)
    edit(case.merged, lambda key, tensor: base[key] if key == "lm_head.weight" else tensor)


@in_files("llama", C4="*post_attention_layernorm*")
def adapter_saves_a_module_that_it_does_not_name(case: Case) -> None:
    more = {"base_model.model.model.layers.0.post_attention_layernorm.weight": torch.ones(32)}
    save_file(load_file(case.adapter / ADAPTER) | more, case.adapter / ADAPTER)


@in_files("deepseek", C4="*layers.0.mlp.gate_proj*")
def adapter_holds_half_a_pair(case: Case) -> None:
    rewrite_adapter(case.adapter, lambda name, tensor: None if "layers.0.mlp.gate_proj.lora_B" in name else tensor)
    unmerge(case, lambda key: "layers.0.mlp.gate_proj" in key)


@in_files("deepseek", C4="*")
def adapter_is_empty(case: Case) -> None:
    save_file({}, case.adapter / ADAPTER)
    unmerge(case, lambda _: True)


@in_files("deepseek", C4="*")
def adapter_of_another_rank_than_it_says(case: Case) -> None:
    configure(case.adapter, r=4)


@in_files("deepseek", C4="*layers.0.self_attn.o_proj*")
def adapter_of_another_shape_than_the_base(case: Case) -> None:
    rewrite_adapter(case.adapter, lambda name, tensor: tensor[:, :32] if "layers.0.self_attn.o_proj.lora_A" in name else tensor)
    unmerge(case, lambda key: "layers.0.self_attn.o_proj" in key)


def second(tensor: Tensor) -> Tensor:
    """A factor of the first adapter → the same factor of the second one."""
    return tensor.flip(0) * 0.75


def both_adapters(case: Case) -> list[Path]:
    """A second adapter beside the first."""
    beside = case.adapter.parent / "second"
    shutil.copytree(case.adapter, beside)
    rewrite_adapter(beside, lambda _, tensor: second(tensor))
    return [case.adapter, beside]


@in_files("deepseek", C4=TOUCHED)
def second_adapter_ignored(case: Case) -> dict[str, Any]:
    return {"adapter": both_adapters(case)}


@in_files("deepseek", C4=TOUCHED)
def weights_of_the_adapters_ignored(case: Case) -> dict[str, Any]:
    def sum_of_both(key: str) -> Tensor:
        A, B, s, _ = case.deltas[key]
        return s * (B @ A + second(B) @ second(A))

    merge_again(case, sum_of_both)
    return {"adapter": both_adapters(case), "weights": (0.5, 0.5)}


@in_files("deepseek", C4=TOUCHED, seen="peft#3761: weighted adapters")
def adapters_combined_factor_by_factor(case: Case) -> dict[str, Any]:
    """(A₁ + A₂)/√2 and (B₁ + B₂)/√2 multiplied: half of the products belong to neither adapter."""

    def product_of_sums(key: str) -> Tensor:
        A, B, s, _ = case.deltas[key]
        return s * 0.5 * ((B + second(B)) @ (A + second(A)))

    merge_again(case, product_of_sums)
    return {"adapter": both_adapters(case), "weights": (0.5, 0.5)}
