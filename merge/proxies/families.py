"""What a family's checkpoint holds: its config.json, and every tensor by name, dtype and shape, in the order of the published files."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers

VOCABULARY = 320  # byte tokens, specials and spare rows
Spec = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


@dataclass(frozen=True, slots=True)
class Family:
    """One proxy: `shards` files named as the hub names them, or a single model.safetensors where it is 1.

    quantiser  what made the codes and scales among its tensors, where there are any
    """

    config: dict[str, Any]
    tensors: tuple[Spec, ...]
    shards: int
    shard_name: str = "model-{:05d}-of-{:05d}.safetensors"
    quantiser: Any = None


def llama(layers: int) -> Family:
    """Grouped-query attention, square and non-square projections, an untied head."""
    config = transformers.LlamaConfig(**_common(layers, tie_word_embeddings=False))
    return Family(_as_json(config, "LlamaForCausalLM"), tuple(_of_model(transformers.LlamaForCausalLM, config, "BF16")), shards=4)


def qwen2(layers: int) -> Family:
    """Biases on q, k and v; the head is tied to the embeddings and absent from the files."""
    config = transformers.Qwen2Config(**_common(layers, tie_word_embeddings=True))
    return Family(_as_json(config, "Qwen2ForCausalLM"), tuple(_of_model(transformers.Qwen2ForCausalLM, config, "BF16")), shards=2)


def gpt2(layers: int) -> Family:
    """Conv1D, which stores (in, out); names without the `transformer.` prefix and with the causal masks, F32, as on the hub."""
    config = transformers.GPT2Config(
        n_embd=96, n_layer=layers, n_head=4, n_positions=64, vocab_size=VOCABULARY, bos_token_id=256, eos_token_id=257
    )
    tensors: list[Spec] = []
    for name, dtype, shape in _of_model(transformers.GPT2LMHeadModel, config, "F32"):
        tensors.append((name.removeprefix("transformer."), dtype, shape))
        if name.endswith(".ln_1.bias"):
            layer = name.split(".")[2]
            tensors.append((f"h.{layer}.attn.bias", "F32", (1, 1, 64, 64)))
    return Family(_as_json(config, "GPT2LMHeadModel", "float32"), tuple(tensors), shards=1)


def deepseek_v3(layers: int, *, ragged: bool = False) -> Family:
    """Latent attention, dense first layers, shared and routed experts one by one, an F32 router bias, and the MTP layer after the last.

    With 61 layers the MTP layer is `model.layers.61`, which transformers drops without a word, as it does for the real one.

    ragged  kv_a_proj_with_mqa has the real one's 576 rows, which are no multiple of 128
    """
    dims = (WIDE | {"kv_lora_rank": 512} if ragged else WIDE) if layers <= WIDE_LAYERS else DEEP
    config = {**DEEPSEEK, **dims, "num_hidden_layers": layers}
    tensors = tuple(_deepseek_tensors(config))
    return Family(config, tensors, shards=6 if dims is DEEP else 4, shard_name="model-{:05d}-of-{:06d}.safetensors")


DEEPSEEK: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "ep_size": 1,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 256,
    "moe_layer_freq": 1,
    "n_group": 2,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts_per_tok": 2,
    "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}
WIDE_LAYERS = 6  # more than these take DEEP's dimensions, so that every proxy stays below 20 MB
WIDE: dict[str, int] = {
    "hidden_size": 256,
    "intermediate_size": 384,
    "moe_intermediate_size": 128,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 128,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 32,
}
DEEP: dict[str, int] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 3,
    "n_routed_experts": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
}


def _common(layers: int, *, tie_word_embeddings: bool) -> dict[str, Any]:
    return {
        "hidden_size": 128,
        "intermediate_size": 320,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "tie_word_embeddings": tie_word_embeddings,
    }


def _as_json(config: Any, architecture: str, dtype: str = "bfloat16") -> dict[str, Any]:
    return {**config.to_dict(), "architectures": [architecture], "dtype": dtype}


def _of_model(model_class: Any, config: Any, dtype: str) -> Iterator[Spec]:
    """Every parameter of a model whose checkpoint names are its own, tied ones left out as the published files do."""
    with torch.device("meta"):
        model = model_class(config)
    for name, value in model.state_dict().items():
        if name not in model.all_tied_weights_keys:
            yield name, dtype, tuple(value.shape)


def _deepseek_tensors(c: dict[str, Any]) -> Iterator[Spec]:
    hidden, vocabulary, layers = c["hidden_size"], c["vocab_size"], c["num_hidden_layers"]
    yield "model.embed_tokens.weight", "BF16", (vocabulary, hidden)
    for layer in range(layers):
        yield from _deepseek_layer(f"model.layers.{layer}", layer, c)
    yield "model.norm.weight", "BF16", (hidden,)
    yield "lm_head.weight", "BF16", (vocabulary, hidden)
    mtp = f"model.layers.{layers}"
    yield f"{mtp}.embed_tokens.weight", "BF16", (vocabulary, hidden)
    for norm in ("enorm", "hnorm"):
        yield f"{mtp}.{norm}.weight", "BF16", (hidden,)
    yield f"{mtp}.eh_proj.weight", "BF16", (hidden, 2 * hidden)
    yield from _deepseek_layer(mtp, layers, c)
    yield f"{mtp}.shared_head.norm.weight", "BF16", (hidden,)
    yield f"{mtp}.shared_head.head.weight", "BF16", (vocabulary, hidden)


def _deepseek_layer(path: str, layer: int, c: dict[str, Any]) -> Iterator[Spec]:
    hidden, heads, q_rank, kv_rank = c["hidden_size"], c["num_attention_heads"], c["q_lora_rank"], c["kv_lora_rank"]
    rope, nope, value = c["qk_rope_head_dim"], c["qk_nope_head_dim"], c["v_head_dim"]
    attention = {
        "q_a_proj": (q_rank, hidden),
        "q_a_layernorm": (q_rank,),
        "q_b_proj": (heads * (nope + rope), q_rank),
        "kv_a_proj_with_mqa": (kv_rank + rope, hidden),
        "kv_a_layernorm": (kv_rank,),
        "kv_b_proj": (heads * (nope + value), kv_rank),
        "o_proj": (hidden, heads * value),
    }
    yield f"{path}.input_layernorm.weight", "BF16", (hidden,)
    for name, shape in attention.items():
        yield f"{path}.self_attn.{name}.weight", "BF16", shape
    yield f"{path}.post_attention_layernorm.weight", "BF16", (hidden,)
    if layer < c["first_k_dense_replace"]:
        yield from _mlp(f"{path}.mlp", hidden, c["intermediate_size"])
        return
    experts, inner = c["n_routed_experts"], c["moe_intermediate_size"]
    yield f"{path}.mlp.gate.weight", "BF16", (experts, hidden)
    yield f"{path}.mlp.gate.e_score_correction_bias", "F32", (experts,)
    for expert in range(experts):
        yield from _mlp(f"{path}.mlp.experts.{expert}", hidden, inner)
    yield from _mlp(f"{path}.mlp.shared_experts", hidden, inner * c["n_shared_experts"])


def _mlp(path: str, hidden: int, inner: int) -> Iterator[Spec]:
    for name, shape in (("gate_proj", (inner, hidden)), ("up_proj", (inner, hidden)), ("down_proj", (hidden, inner))):
        yield f"{path}.{name}.weight", "BF16", shape
