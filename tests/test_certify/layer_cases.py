"""Tiny checkpoints of nine families with an adapter on every linear map, and sound merges of them.

The adapter's file carries the names of the base's files, expert by expert, as adapters of an older transformers do.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from torch import Tensor

from certify.checks.c9_layers import LayerBehaviour
from certify.expect.ledger import build_ledger
from certify.finding import Finding
from certify.inputs.adapter import open_adapter
from certify.inputs.checkpoint import open_checkpoint

WEIGHTS = "model.safetensors"
RANK, ALPHA = 4, 16
EXPERTS = 16
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False}
ROUTED = {"num_experts": EXPERTS, "num_experts_per_tok": 4, "moe_intermediate_size": 32, "norm_topk_prob": True}
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
    "n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": 4, "moe_intermediate_size": 32,
    "n_group": 4, "topk_group": 2,
    "first_k_dense_replace": 1, "num_nextn_predict_layers": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Family:
    """build: a model; layer: the one that faults are planted in; q, o, down: modules in it; targets: ends of adapted paths."""

    build: Callable[[], Any]
    layer: str
    q: str
    o: str
    down: str
    targets: tuple[str, ...]
    experts: bool = False


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
DENSE = ("model.layers.1", "self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", ATTENTION + MLP)
FAMILIES: Mapping[str, Family] = {
    "llama": Family(lambda: t.LlamaForCausalLM(t.LlamaConfig(**GROUPED)), *DENSE),
    "qwen2": Family(
        lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**GROUPED | {"tie_word_embeddings": True})), *DENSE
    ),
    "gemma3_text": Family(lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**GROUPED | {"tie_word_embeddings": True})), *DENSE),
    "gpt2": Family(
        lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
        ),
        "transformer.h.1", "attn.c_attn", "attn.c_proj", "mlp.c_proj", ("c_attn", "c_proj", "c_fc"),
    ),
    "bert": Family(
        lambda: t.BertForMaskedLM(t.BertConfig(**SIZES)), "bert.encoder.layer.1", "attention.self.query", "attention.output.dense",
        "output.dense", ("query", "key", "value", "dense"),
    ),
    "t5": Family(
        lambda: t.T5ForConditionalGeneration(
            t.T5Config(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, vocab_size=96, decoder_start_token_id=0)
        ),
        "encoder.block.1", "layer.0.SelfAttention.q", "layer.0.SelfAttention.o", "layer.1.DenseReluDense.wo",
        ("q", "k", "v", "o", "wi", "wo"),
    ),
    "qwen3_moe": Family(
        lambda: t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**GROUPED, **ROUTED)),
        "model.layers.1", "self_attn.q_proj", "self_attn.o_proj", "", ATTENTION + MLP, experts=True,
    ),
    "qwen3_next": Family(
        lambda: t.Qwen3NextForCausalLM(t.Qwen3NextConfig(
            **GROUPED, **ROUTED, shared_expert_intermediate_size=32, layer_types=["linear_attention", "full_attention"],
            linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16,
        )),
        "model.layers.1", "self_attn.q_proj", "self_attn.o_proj", "mlp.shared_expert.down_proj",
        (*ATTENTION, *MLP, "in_proj_qkvz", "out_proj"), experts=True,
    ),
    "deepseek_v3": Family(
        lambda: t.DeepseekV3ForCausalLM(t.DeepseekV3Config(**SIZES | LATENT, tie_word_embeddings=False)),
        "model.layers.1", "self_attn.q_b_proj", "self_attn.o_proj", "mlp.shared_experts.down_proj",
        ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", *MLP), experts=True,
    ),
}  # fmt: skip


@dataclass
class Case:
    """base, adapter, merged: directories. held: the base's tensors. deltas: disk key → Δ, float32, as the tensor is stored."""

    family: Family
    base: Path
    adapter: Path
    merged: Path
    held: dict[str, Tensor]
    deltas: dict[str, Tensor]

    def sound(self) -> dict[str, Tensor]:
        """Every tensor merged in float32 and rounded once."""
        return {key: self.rounded(key, self.deltas[key]) if key in self.deltas else W.clone() for key, W in self.held.items()}

    def rounded(self, key: str, delta: Tensor) -> Tensor:
        return (self.held[key].float() + delta).to(self.held[key].dtype)

    def write(self, tensors: dict[str, Tensor]) -> None:
        """The merged checkpoint."""
        shutil.rmtree(self.merged, ignore_errors=True)
        shutil.copytree(self.base, self.merged)
        save_file(tensors, self.merged / WEIGHTS, metadata={"format": "pt"})


def behaviour(case: Case, criterion: str = "nearest") -> LayerBehaviour:
    """C9 of what lies in the case's directories."""
    base, merged, adapter = open_checkpoint(case.base), open_checkpoint(case.merged), open_adapter(case.adapter)
    ledger = build_ledger(base, [adapter], [1.0])
    assert not ledger.findings, ledger.findings
    return LayerBehaviour(base, merged, ledger, [adapter], [1.0], criterion)


def examine(case: Case, criterion: str = "nearest") -> list[Finding]:
    """The finding of every unit."""
    layers = behaviour(case, criterion)
    return [finding for unit in layers.units for finding in layers.examine(unit)]


def make(family: str, rho: float, room: Path, *, dtype: torch.dtype = torch.bfloat16, rank: int = RANK) -> Case:
    """A case of one family with ‖Δ‖/‖W‖ = rho in every adapted tensor; the base is made once per room."""
    chosen = FAMILIES[family]
    base, adapter = room / f"{family}-base", room / f"{family}-adapter-{rho}"
    if not base.exists():
        _make_base(chosen, base, dtype)
    held = load_file(base / WEIGHTS)
    deltas = _make_adapter(chosen, held, adapter, rho, rank, conv=family == "gpt2")
    return Case(chosen, base, adapter, room / f"{family}-merged", held, deltas)


def sound(family: str, rho: float, room: Path) -> Case:
    """A case whose merged checkpoint is right."""
    case = make(family, rho, room)
    case.write(case.sound())
    return case


def _make_base(family: Family, directory: Path, dtype: torch.dtype) -> None:
    """Random weights in one file; DeepSeek gets its F32 router bias and its MTP layer, which transformers would not save."""
    t.utils.logging.disable_progress_bar()
    torch.manual_seed(7)
    model = family.build().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * (0.05 if parameter.dim() > 1 else 0.1) + (parameter.dim() == 1))
    model.save_pretrained(directory)
    tensors = load_file(directory / WEIGHTS)
    if biases := [key for key in tensors if key.endswith("e_score_correction_bias")]:
        tensors |= {key: torch.randn(EXPERTS) * 0.02 for key in biases}
        tensors |= {key.replace("layers.1.", "layers.2."): W.clone() for key, W in tensors.items() if "layers.1." in key}
        tensors["model.layers.2.eh_proj.weight"] = (torch.randn(64, 128) * 0.05).to(dtype)
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def _make_adapter(family: Family, held: dict[str, Tensor], directory: Path, rho: float, rank: int, *, conv: bool) -> dict[str, Tensor]:
    """Writes the adapter; returns Δ by disk key. Modules outside the layers, and the MTP layer, are left alone."""
    chance, tensors, deltas = torch.Generator().manual_seed(11), {}, {}
    for key, W in sorted(held.items()):
        path = key.removesuffix(".weight")
        inside = any(path.startswith(f"{family.layer[:-1]}{number}.") or "decoder.block" in path for number in (0, 1))
        if path != key and W.dim() == 2 and inside and path.rpartition(".")[2] in family.targets:
            out, into = W.shape[::-1] if conv else W.shape
            A, B = torch.randn(rank, into, generator=chance), torch.randn(out, rank, generator=chance)
            B *= rho * W.float().norm() / (ALPHA / rank * (B @ A).norm())
            delta = ALPHA / rank * (B @ A)
            deltas[key] = delta.T.contiguous() if conv else delta
            tensors |= {f"base_model.model.{path}.lora_A.weight": A, f"base_model.model.{path}.lora_B.weight": B}
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    modules = sorted({name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for name in tensors if "lora_A" in name})
    config = peft.LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=modules, fan_in_fan_out=conv).to_dict()
    text = json.dumps({key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}, default=str)
    (directory / "adapter_config.json").write_text(text)
    return deltas
