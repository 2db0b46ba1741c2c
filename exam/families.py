"""Tiny real models of sixteen families, and PEFT adapters for them: what sound merges are made of.

Every checkpoint is written by transformers' own save_pretrained, every adapter by PEFT's, and B is then given the size that a trained
one would have: ‖Δ‖/‖W‖ = ρ in each module.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as t

from exam.cases import read, write

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
RANK, ALPHA = 4, 16
SIGMA = 0.05  # of the weights
SHARD = {"sharded": "24KB", "single": "5GB"}

COMMON: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = COMMON | {"num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "tie_word_embeddings": False}
TIED = GROUPED | {"tie_word_embeddings": True}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture.

    build    a model with its own configuration
    targets  linear modules that a LoRA adapts, the first two of different shapes
    saved    modules that `modules_to_save` may name
    experts  targets of an adapter that ColossalAI writes, expert by expert, by disk names
    traits   what a merge of this family meets beyond plain matrices
    """

    build: Callable[[], Any]
    targets: tuple[str, ...]
    saved: tuple[str, ...]
    experts: tuple[str, ...] = ()
    traits: tuple[str, ...] = ()
    task: str = "CAUSAL_LM"


FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        lambda: t.LlamaForCausalLM(t.LlamaConfig(**GROUPED)), ("q_proj", "k_proj", "down_proj"), ("lm_head", "input_layernorm")
    ),
    "mistral": Family(lambda: t.MistralForCausalLM(t.MistralConfig(**GROUPED)), ("o_proj", "v_proj", "up_proj"), ("lm_head", "norm")),
    "qwen2": Family(
        lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**TIED)), ("q_proj", "k_proj", "gate_proj"), ("input_layernorm",), traits=("tied", "bias")
    ),
    "qwen3": Family(
        lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**GROUPED, head_dim=16)), ("q_proj", "v_proj", "down_proj"), ("lm_head", "q_norm")
    ),
    "gemma3_text": Family(
        lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**TIED, head_dim=8)), ("o_proj", "k_proj", "up_proj"), ("q_norm",), traits=("tied",)
    ),
    "gpt2": Family(
        lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=32)),
        ("c_proj", "c_attn", "c_fc"), ("ln_f",), traits=("conv1d", "tied", "bias"),
    ),
    "gpt_neox": Family(
        lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**COMMON, tie_word_embeddings=False)),
        ("query_key_value", "dense", "dense_h_to_4h"), ("embed_out", "final_layer_norm"), traits=("fused qkv", "bias"),
    ),
    "phi3": Family(
        lambda: t.Phi3ForCausalLM(t.Phi3Config(**GROUPED)), ("qkv_proj", "gate_up_proj", "o_proj"), ("lm_head",), traits=("fused qkv",)
    ),
    "bert": Family(
        lambda: t.BertForSequenceClassification(t.BertConfig(**COMMON, num_labels=3)),
        ("query", "intermediate.dense", "value"), ("classifier",), traits=("bias",), task="SEQ_CLS",
    ),
    "t5": Family(
        lambda: t.T5ForConditionalGeneration(
            t.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=96, decoder_start_token_id=0)
        ),
        ("q", "wo", "v"), ("final_layer_norm",), traits=("tied",), task="SEQ_2_SEQ_LM",
    ),
    "opt": Family(
        lambda: t.OPTForCausalLM(
            t.OPTConfig(vocab_size=96, hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
                        max_position_embeddings=32, tie_word_embeddings=False)
        ),
        ("q_proj", "fc1", "out_proj"), ("lm_head",), traits=("bias",),
    ),
    "falcon": Family(
        lambda: t.FalconForCausalLM(
            t.FalconConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, tie_word_embeddings=False)
        ),
        ("query_key_value", "dense", "dense_h_to_4h"), ("lm_head",), traits=("fused qkv",),
    ),
    "mixtral": Family(
        lambda: t.MixtralForCausalLM(t.MixtralConfig(**GROUPED, num_local_experts=4)),
        ("q_proj", "k_proj", "o_proj"), ("lm_head",), ("w1", "w2", "w3"), traits=("stacked experts",),
    ),
    "qwen3_moe": Family(
        lambda: t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**GROUPED, **EXPERTS, num_experts=4, head_dim=8)),
        ("q_proj", "v_proj", "o_proj"), ("lm_head",), ("gate_proj", "up_proj", "down_proj"), traits=("stacked experts",),
    ),
    "olmoe": Family(
        lambda: t.OlmoeForCausalLM(t.OlmoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2)),
        ("q_proj", "k_proj", "o_proj"), ("lm_head",), ("gate_proj", "up_proj", "down_proj"), traits=("stacked experts",),
    ),
    "deepseek_v3": Family(
        lambda: t.DeepseekV3ForCausalLM(
            t.DeepseekV3Config(**GROUPED | EXPERTS | LATENT | ROUTED | {"num_hidden_layers": 3}, num_nextn_predict_layers=1)
        ),
        ("q_a_proj", "kv_b_proj", "o_proj"), ("lm_head",), ("gate_proj", "up_proj", "down_proj"), traits=("stacked experts", "MTP"),
    ),
}  # fmt: skip


def make_base(family: str, dtype: str, directory: Path, layout: str) -> None:
    """A checkpoint of one family: random weights of one dtype, in several shards or in a single file.

    DeepSeek gets what the published one has and transformers does not save: the router bias in F32, and the MTP layer.
    """
    with quiet():
        torch.manual_seed(7)
        model = FAMILIES[family].build().to(DTYPES[dtype])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape) * SIGMA)
        model.save_pretrained(directory, max_shard_size=SHARD[layout])
    if family == "deepseek_v3":
        _add_mtp(directory, DTYPES[dtype])


def _add_mtp(directory: Path, dtype: torch.dtype) -> None:
    """Layer 3 as a further decoder layer; another F32 tensor beside it would be none of the base's main dtype either."""
    shards = {
        file: {key: tensor.float() if key.endswith("e_score_correction_bias") else tensor for key, tensor in tensors.items()}
        for file, tensors in read(directory).items()
    }
    held = {key: tensor for tensors in shards.values() for key, tensor in tensors.items()}
    mtp = {key.replace("layers.2.", "layers.3."): tensor.clone() for key, tensor in held.items() if "layers.2." in key}
    mtp["model.layers.3.eh_proj.weight"] = (torch.randn(32, 64) * SIGMA).to(dtype)
    last = list(shards)[-1]
    write(directory, shards | {last: shards[last] | mtp} if len(shards) == 1 else shards | {"model-mtp.safetensors": mtp})


def make_adapter(
    family: str,
    base: Path,
    directory: Path,
    rho: float,
    *,
    seed: int = 11,
    half: bool = False,
    pickle: bool = False,
    untrained: str | None = None,
    **options: Any,
) -> dict[str, float]:
    """A LoRA made and saved by PEFT; returns the scaling that PEFT itself gives each module. `options` are PEFT's own.

    half  factors in bf16, as some trainers keep them      pickle  adapter_model.bin      untrained  a target whose B stays zero
    """
    import peft
    from peft.tuners.lora.layer import LoraLayer

    chosen = FAMILIES[family]
    terms = {"r": RANK, "lora_alpha": ALPHA, "target_modules": list(chosen.targets), "task_type": chosen.task} | options
    with quiet(), torch.no_grad():
        torch.manual_seed(seed)
        wrapped = peft.get_peft_model(load(base, "fp32"), peft.LoraConfig(**terms))
        scalings = {}
        for path, module in wrapped.named_modules():
            if isinstance(module, LoraLayer):
                scalings[path.removeprefix("base_model.model.")] = float(module.scaling["default"])
                if untrained is not None and path.endswith(f".{untrained}"):
                    continue
                B = module.lora_B["default"].weight
                B.copy_(torch.randn(B.shape))
                B.mul_(rho * module.get_base_layer().weight.norm() / module.get_delta_weight("default").norm())
        for name, parameter in wrapped.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape) * SIGMA * rho)
        if half:
            wrapped.bfloat16()
        wrapped.save_pretrained(directory, safe_serialization=not pickle)
    return scalings


def load(base: Path, dtype: str) -> Any:
    """The model of a checkpoint, by the class that its configuration names."""
    name = json.loads((base / "config.json").read_text())["architectures"][0]
    return getattr(t, name).from_pretrained(base, dtype=DTYPES[dtype])


@contextmanager
def quiet() -> Iterator[None]:
    """transformers and PEFT warn about running these models; nothing here runs one."""
    verbosity = t.utils.logging.get_verbosity()
    t.utils.logging.set_verbosity_error()
    t.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        t.utils.logging.set_verbosity(verbosity)
