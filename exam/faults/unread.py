"""Kinds of adapters and encodings that a version may not interpret: then it says so by name, and certifies nothing."""

import torch
from safetensors.torch import load_file, save_file

from exam.cases import Case, edit
from exam.faults.accounts import ADAPTER, configure
from exam.faults.registry import in_files
from exam.grid import own_base

STEM = "base_model.model."


def add(case: Case, **tensors: torch.Tensor) -> None:
    save_file(load_file(case.adapter / ADAPTER) | {STEM + name: tensor for name, tensor in tensors.items()}, case.adapter / ADAPTER)


@in_files("deepseek", unknown=True, C4="*embed_tokens*", seen="axolotl 0.19, 0.21: embedding LoRA ignored")
def embedding_lora_ignored(case: Case) -> None:
    configure(case.adapter, target_modules=["o_proj", "gate_proj", "up_proj", "lm_head", "embed_tokens"])
    embedding = {"model.embed_tokens.lora_embedding_A": torch.randn(8, 64), "model.embed_tokens.lora_embedding_B": torch.randn(64, 8)}
    add(case, **embedding)


@in_files("gpt2", unknown=True, C4="*", seen="axolotl 0.19, 0.21: trained biases ignored")
def trained_bias_ignored(case: Case) -> None:
    configure(case.adapter, bias="all")
    add(case, **{"transformer.h.0.attn.c_attn.bias": torch.randn(96)})


@in_files("deepseek", unknown=True, C4="*", seen="deltalint 0.1.0, axolotl 0.21: lora_bias ignored")
def bias_of_the_adapter_ignored(case: Case) -> None:
    configure(case.adapter, lora_bias=True)
    add(case, **{"model.layers.0.self_attn.o_proj.lora_B.bias": torch.randn(64)})


@in_files("deepseek", unknown=True, C4="*", seen="axolotl 0.19: trainable tokens ignored")
def trainable_tokens_ignored(case: Case) -> None:
    configure(case.adapter, trainable_token_indices={"embed_tokens": [1, 2]})
    add(case, **{"model.embed_tokens.token_adapter.trainable_tokens_delta": torch.randn(2, 64)})


@in_files("deepseek", unknown=True, C4="*", seen="tinker-cookbook, qlora-pipe: DoRA ignored; peft#3608")
def dora_ignored(case: Case) -> None:
    configure(case.adapter, use_dora=True)
    add(case, **{"model.layers.0.self_attn.o_proj.lora_magnitude_vector": torch.rand(64) + 0.5})


@in_files("deepseek", unknown=True, C4="*", seen="PEFT 0.21 merges into the shared weights")
def layer_replication_ignored(case: Case) -> None:
    configure(case.adapter, layer_replication=[[0, 2], [1, 3]])


@in_files("deepseek", unknown=True, C4="*")
def fused_expert_adapter_ignored(case: Case) -> None:
    configure(case.adapter, target_parameters=["mlp.experts.gate_up_proj"])


@in_files("deepseek", unknown=True, C4="*")
def field_of_a_later_release_ignored(case: Case) -> None:
    configure(case.adapter, rotate_delta_by=0.3)


@in_files("deepseek", unknown=True, C4="*o_proj.weight", seen="tinker-cookbook, axolotl#3771: the delta was added to raw codes")
def delta_added_to_fp8_codes(case: Case) -> None:
    """The base is stored as codes with a scale; so is the merge, but its codes are W/scale + Δ."""
    key = "model.layers.0.self_attn.o_proj.weight"
    A, B, s, _ = case.deltas[key]

    def codes(name: str, tensor: torch.Tensor, delta: torch.Tensor | float) -> torch.Tensor:
        return (tensor.float() / 2.0**-8 + delta).to(torch.float8_e4m3fn) if name == key else tensor

    own_base(case)
    edit(case.base, lambda name, tensor: codes(name, tensor, 0.0))
    edit(case.merged, lambda name, tensor: codes(name, tensor, s * (B @ A)))
