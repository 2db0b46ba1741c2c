"""Families that keep all experts of a layer in one tensor, with towers and layers that a language model's adapter never touches."""

from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

from merge.proxies.families import VOCABULARY, Family, Spec

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
    "tie_word_embeddings": False,
}


def qwen3_5_moe(layers: int) -> Family:
    """Experts fused as (experts, out, in), linear and full attention, `model.visual.*`, and `mtp.*`, which transformers drops unsaid."""
    kinds = ["full_attention" if (layer + 1) % 2 == 0 else "linear_attention" for layer in range(layers)]
    text = {
        **TEXT,
        "num_hidden_layers": layers,
        "layer_types": kinds,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "mtp_num_hidden_layers": 1,
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    config = transformers.Qwen3_5MoeConfig(
        text_config=text, vision_config={**vision, "patch_size": 4, "num_position_embeddings": 16}, tie_word_embeddings=False
    )
    specs = list(_specs(transformers.Qwen3_5MoeForConditionalGeneration, config))
    return Family(_as_json(config, "Qwen3_5MoeForConditionalGeneration"), (*specs, *_mtp(specs, kinds, experts=4)), shards=3)


def llama4(layers: int) -> Family:
    """Every second layer with experts fused as (experts, in, out), a vision tower and its projector; all of it below `language_model.`."""
    text = {
        **TEXT,
        "num_hidden_layers": layers,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size": 32,
        "intermediate_size_mlp": 96,
        "interleave_moe_layer_step": 2,
    }
    vision = {
        "num_hidden_layers": 1,
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    sizes = {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64}
    config = transformers.Llama4Config(text_config=text, vision_config={**vision, **sizes}, tie_word_embeddings=False)
    specs = tuple(_specs(transformers.Llama4ForConditionalGeneration, config, renamed=True))
    return Family(_as_json(config, "Llama4ForConditionalGeneration"), specs, shards=3)


def _as_json(config: Any, architecture: str) -> dict[str, Any]:
    found = config.to_dict()
    for section in (found, found["text_config"]):
        section["dtype"] = "bfloat16"
    return {**found, "architectures": [architecture]}


def _specs(model_class: Any, config: Any, *, renamed: bool = False) -> Iterator[Spec]:
    """Every parameter as published. renamed  the files have other names than the model, and transformers knows them"""
    with torch.device("meta"):
        model = model_class(config)
    state = model.state_dict()
    for name, value in (revert_weight_conversion(model, state) if renamed else state).items():
        yield name, "BF16", tuple(value.shape)


def _mtp(specs: list[Spec], kinds: list[str], *, experts: int) -> Iterator[Spec]:
    """The layer that predicts one token more: a full-attention layer of the model with its experts one by one, and what joins it."""
    hidden = TEXT["hidden_size"]
    yield "mtp.fc.weight", "BF16", (hidden, 2 * hidden)
    for norm in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        yield f"mtp.{norm}.weight", "BF16", (hidden,)
    like = f"model.language_model.layers.{kinds.index('full_attention')}."
    for name, dtype, shape in specs:
        if not name.startswith(like):
            continue
        leaf = name.removeprefix(like)
        if not leaf.startswith("mlp.experts."):
            yield f"mtp.layers.0.{leaf}", dtype, shape
            continue
        gated = leaf.endswith("gate_up_proj")
        for expert in range(experts):
            for part in ("gate_proj", "up_proj") if gated else ("down_proj",):
                yield f"mtp.layers.0.mlp.experts.{expert}.{part}.weight", dtype, (shape[1] // (2 if gated else 1), shape[2])
