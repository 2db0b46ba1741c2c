"""Tensors that are missing, added, renamed, or of another shape or dtype; and tensors exchanged for one another."""

import torch
from torch import Tensor

from exam.cases import Case, edit, read, write
from exam.faults.registry import in_files

EXPERTS = "model.layers.1.mlp.experts."
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
NORM = "model.layers.{}.post_attention_layernorm.weight"
MTP = "model.layers.3.*"


def without(case: Case, part: str) -> None:
    edit(case.merged, lambda key, tensor: None if part in key else tensor)


def renamed(case: Case, old: str, new: str) -> None:
    shards = read(case.merged)
    write(case.merged, {file: {key.replace(old, new): tensor for key, tensor in held.items()} for file, held in shards.items()})


def changed(case: Case, one: str, new: Tensor) -> None:
    edit(case.merged, lambda key, tensor: new.contiguous() if key == one else tensor)


def exchanged(case: Case, one: str, other: str) -> None:
    held = {key: tensor for tensors in read(case.merged).values() for key, tensor in tensors.items()}
    pair = {one: held[other].clone(), other: held[one].clone()}
    edit(case.merged, lambda key, tensor: pair.get(key, tensor))


def tensor(case: Case, name: str) -> Tensor:
    return next(held[name] for held in read(case.merged).values() if name in held)


@in_files("deepseek", C2=MTP, C7="config.json", seen="vllm#35548, heretic#317, llm-compressor#3118")
def mtp_layer_dropped_though_announced(case: Case) -> None:
    without(case, "layers.3.")


@in_files("deepseek", C2=f"{EXPERTS}2.*")
def one_expert_dropped(case: Case) -> None:
    without(case, f"{EXPERTS}2.")


@in_files("deepseek", C2="model.norm.weight")
def final_norm_dropped(case: Case) -> None:
    without(case, "model.norm.")


@in_files("deepseek", C2=HEAD, C7="config.json")
def head_dropped(case: Case) -> None:
    without(case, HEAD)


@in_files("deepseek", C2="model.layers.2.*")
def one_layer_dropped(case: Case) -> None:
    without(case, "model.layers.2.")


@in_files("deepseek", C2="model.extra.weight")
def tensor_added(case: Case) -> None:
    shards = read(case.merged)
    first = next(iter(shards))
    shards[first]["model.extra.weight"] = torch.zeros(4)
    write(case.merged, shards)


@in_files("gpt2", C2=HEAD, C7="config.json", seen="transformers#45127, peft#2777, unsloth#9331: the tied head")
def head_untied_by_the_merge(case: Case) -> None:
    """Base: head and embedding are one. The merge stored a head of its own, and a loader that ties throws it away."""
    shards = read(case.merged)
    file, held = next((file, held) for file, held in shards.items() if "transformer.wte.weight" in held)
    shards[file] = held | {HEAD: held["transformer.wte.weight"] * 1.5}
    write(case.merged, shards)


@in_files("deepseek", C2="model.layers.1.*")
def layer_renamed(case: Case) -> None:
    renamed(case, "model.layers.1.mlp.shared", "model.blocks.1.mlp.shared")


@in_files("deepseek", C2="*")
def prefix_of_the_model_lost(case: Case) -> None:
    renamed(case, "model.", "")


@in_files("deepseek", C2="*gate_proj.weight", seen="axolotl#3095, qlora-pipe: `.strip('.weight')` eats letters")
def letters_of_names_eaten(case: Case) -> None:
    renamed(case, "gate_proj.weight", "gate_proj.w")


@in_files("deepseek", C2="*base_layer.weight")
def names_of_the_adapted_model_saved(case: Case) -> None:
    renamed(case, "o_proj.weight", "o_proj.base_layer.weight")


@in_files("deepseek", C2=f"{EXPERTS}*", seen="axolotl: 84 keys became 36, an attention-only adapter fused the experts")
def experts_fused_by_the_merge(case: Case) -> None:
    shards = read(case.merged)
    held = {key: tensor for tensors in shards.values() for key, tensor in tensors.items() if key.startswith(EXPERTS)}
    kept = {file: {key: tensor for key, tensor in tensors.items() if key not in held} for file, tensors in shards.items()}
    for name in ("gate_proj", "up_proj", "down_proj"):
        each = [held[key] for key in sorted(held) if f".{name}." in key]
        kept[next(iter(kept))][f"{EXPERTS}{name}"] = torch.stack(each)
    write(case.merged, {file: tensors for file, tensors in kept.items() if tensors})


@in_files("deepseek", C2="model.layers.0.*", seen="axolotl#1510, axolotl#902, LLaMA-Factory#7998")
def dtype_drift_everywhere(case: Case) -> None:
    """All in a dtype that nobody declared; the configuration says the old one."""
    edit(case.merged, lambda _, held: held.to(torch.float16 if held.dtype != torch.float16 else torch.bfloat16))


@in_files("deepseek", C2="model.layers.0.self_attn.o_proj.weight")
def one_tensor_in_another_dtype(case: Case) -> None:
    key = "model.layers.0.self_attn.o_proj.weight"
    changed(case, key, tensor(case, key).to(torch.float16 if tensor(case, key).dtype != torch.float16 else torch.float32))


@in_files("deepseek", C2=BIAS)
def router_bias_downcast(case: Case) -> None:
    changed(case, BIAS, tensor(case, BIAS).bfloat16())


@in_files("deepseek", C2=BIAS)
def router_bias_in_double_precision(case: Case) -> None:
    changed(case, BIAS, tensor(case, BIAS).double())


@in_files("deepseek", C2="model.layers.0.mlp.gate_proj.weight")
def one_tensor_transposed_in_shape(case: Case) -> None:
    key = "model.layers.0.mlp.gate_proj.weight"
    changed(case, key, tensor(case, key).T)


@in_files("deepseek", C2="model.norm.weight")
def one_axis_more(case: Case) -> None:
    changed(case, "model.norm.weight", tensor(case, "model.norm.weight")[None])


@in_files("deepseek", C2="model.layers.0.*", seen="peft#894, peft#868: 26 GB became 9 GB")
def tensors_saved_empty(case: Case) -> None:
    edit(case.merged, lambda key, held: torch.empty(0, dtype=held.dtype) if "layers.0." in key else held)


@in_files("deepseek", C2=EMBEDDING, C7="config.json", seen="Chinese-LLaMA-Alpaca#703, unsloth#3428")
def vocabulary_grown_by_rows_of_zero(case: Case) -> None:
    edit(case.merged, lambda key, held: torch.cat([held, torch.zeros_like(held[:8])]) if key in (EMBEDDING, HEAD) else held)


@in_files("deepseek", C3=NORM.format(1))
def two_untouched_norms_exchanged(case: Case) -> None:
    exchanged(case, NORM.format(1), NORM.format(2))


@in_files("deepseek", C3="model.layers.1.mlp.gate.weight")
def two_routers_exchanged(case: Case) -> None:
    exchanged(case, "model.layers.1.mlp.gate.weight", "model.layers.2.mlp.gate.weight")


@in_files("deepseek", C3="model.layers.3.*")
def mtp_layer_overwritten_with_the_last_layer(case: Case) -> None:
    held = {key: value for tensors in read(case.merged).values() for key, value in tensors.items()}
    edit(case.merged, lambda key, value: held.get(key.replace("layers.3.", "layers.2."), value).clone() if "layers.3." in key else value)


@in_files("deepseek", C3="model.layers.*norm.weight")
def all_norms_by_way_of_eight_bits(case: Case) -> None:
    edit(case.merged, lambda key, held: held.to(torch.float8_e4m3fn).to(held.dtype) if "layernorm" in key else held)


@in_files("deepseek", C4=f"{EXPERTS}0.up_proj.weight")
def two_experts_exchanged(case: Case) -> None:
    exchanged(case, f"{EXPERTS}0.up_proj.weight", f"{EXPERTS}1.up_proj.weight")


@in_files("deepseek", C4="model.layers.0.mlp.gate_proj.weight")
def gate_and_up_exchanged(case: Case) -> None:
    exchanged(case, "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight")


@in_files("deepseek", C4="model.layers.1.self_attn.o_proj.weight")
def two_layers_exchanged(case: Case) -> None:
    held = {key: value for tensors in read(case.merged).values() for key, value in tensors.items()}
    other = {key: key.replace("layers.1.", "layers.2.") if "layers.1." in key else key.replace("layers.2.", "layers.1.") for key in held}
    edit(case.merged, lambda key, value: held[other[key]].clone() if other[key] in held else value)
