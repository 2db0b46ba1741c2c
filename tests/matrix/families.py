"""Tiny real models: one builder per family, and what each feature of an adapter may be tried on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers as t

GROUPED: dict[str, Any] = {
    **{"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    **{"tie_word_embeddings": False},
}
TIED = GROUPED | {"tie_word_embeddings": True}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
ROUTED = {
    **{"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
BERT: dict[str, Any] = {
    **{"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    "max_position_embeddings": 64,
}
LINEAR_ATTENTION = {
    **{"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4, "linear_num_key_heads": 2},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 24, "head_dim": 8},
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}


@dataclass(frozen=True)
class Family:
    """One architecture.

    linear      linear modules that LoRA adapts, of different shapes      conv1d  they store (in, out)
    saved       a module that is trained whole
    biased      its linear modules have biases
    embedding   its embedding module, and the head, where LoRA may adapt them
    experts     parameters that hold all experts of a layer
    disk        modules on disk, as adapters of transformers 4 and ColossalAI name them, expert by expert
    convolution modules that convolve
    router      the weight of its routers, which PEFT turns into a parameter of its own
    head        another class with a head that the base has not, and that head
    replicated  its decoder stack may repeat layers
    """

    build: Callable[[], Any]
    linear: tuple[str, ...]
    saved: str
    biased: bool = False
    embedding: str | None = "embed_tokens"
    lm_head: str | None = "lm_head"
    experts: tuple[str, ...] = ()
    disk: tuple[str, ...] = ()
    convolution: tuple[str, ...] = ()
    router: str | None = None
    head: str | None = None
    replicated: bool = False
    task: str = "CAUSAL_LM"
    inputs: str = "tokens"


def text(build: Callable[[], Any], *linear: str, saved: str = "lm_head", **more: Any) -> Family:
    """A decoder of text."""
    return Family(build, linear, saved, **more)


LLAMA = ("q_proj", "k_proj", "down_proj")
GATED = ("gate_proj", "up_proj", "down_proj")
STACK = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")

FAMILIES: Mapping[str, Family] = {
    "llama": text(
        lambda: t.LlamaForCausalLM(t.LlamaConfig(**GROUPED)), *LLAMA, disk=(*LLAMA, "lm_head"),
        head="LlamaForSequenceClassification", replicated=True,
    ),
    "llama_tied": text(
        lambda: t.LlamaForCausalLM(t.LlamaConfig(**TIED)), *LLAMA, saved="input_layernorm", disk=LLAMA,
        head="LlamaForTokenClassification", replicated=True,
    ),
    "mistral": text(
        lambda: t.MistralForCausalLM(t.MistralConfig(**GROUPED)), "o_proj", "v_proj", "up_proj", disk=("o_proj", "v_proj"),
        head="MistralForSequenceClassification", replicated=True,
    ),
    "qwen2": text(
        lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**TIED)), "q_proj", "k_proj", "v_proj", saved="input_layernorm", biased=True,
        disk=("q_proj", "up_proj"), head="Qwen2ForSequenceClassification",
    ),
    "qwen3": text(
        lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**GROUPED, head_dim=16)), "q_proj", "v_proj", "down_proj", saved="q_norm",
        disk=("q_proj", "down_proj"), head="Qwen3ForTokenClassification",
    ),
    "qwen2_moe": text(
        lambda: t.Qwen2MoeForCausalLM(t.Qwen2MoeConfig(**GROUPED | EXPERTS, shared_expert_intermediate_size=40, decoder_sparse_step=1)),
        "q_proj", "k_proj", "o_proj", experts=STACK, disk=("q_proj", *GATED),
    ),
    "qwen3_moe": text(
        lambda: t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**GROUPED | EXPERTS, head_dim=8)), "q_proj", "v_proj", "o_proj",
        experts=STACK, disk=("q_proj", *GATED, "gate"), head="Qwen3MoeForSequenceClassification",
    ),
    "qwen3_next": text(
        lambda: t.Qwen3NextForCausalLM(t.Qwen3NextConfig(**GROUPED | EXPERTS | LINEAR_ATTENTION)), "q_proj", "in_proj_qkvz", "o_proj",
        experts=STACK, disk=("q_proj", *GATED),
    ),
    "qwen3_5_moe": text(
        lambda: t.Qwen3_5MoeForCausalLM(t.Qwen3_5MoeTextConfig(**GROUPED | EXPERTS | LINEAR_ATTENTION)), "q_proj", "in_proj_qkv", "o_proj",
        experts=STACK, disk=("q_proj", *GATED),
    ),
    "mixtral": text(
        lambda: t.MixtralForCausalLM(t.MixtralConfig(**GROUPED, num_local_experts=4)), "q_proj", "k_proj", "o_proj",
        experts=STACK, disk=("q_proj", "w1", "w2", "w3", "gate"),
    ),
    "olmoe": text(
        lambda: t.OlmoeForCausalLM(t.OlmoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2)), "q_proj", "k_proj", "o_proj",
        experts=STACK, disk=("q_proj", *GATED),
    ),
    "phimoe": text(
        lambda: t.PhimoeForCausalLM(t.PhimoeConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)), "q_proj", "k_proj", "o_proj",
        experts=STACK, disk=("q_proj", "w1", "w2", "w3"),
    ),
    "lfm2_moe": text(
        lambda: t.Lfm2MoeForCausalLM(t.Lfm2MoeConfig(**GROUPED | EXPERTS, num_dense_layers=1, layer_types=["full_attention"] * 2)),
        "q_proj", "k_proj", "v_proj", saved="operator_norm",
        experts=("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
        disk=("q_proj", "w1", "w2", "w3"),
    ),
    "deepseek_v2": text(
        lambda: t.DeepseekV2ForCausalLM(t.DeepseekV2Config(**GROUPED | LATENT | ROUTED)), "q_a_proj", "kv_b_proj", "o_proj",
        experts=STACK, disk=("kv_b_proj", *GATED),
    ),
    "deepseek_v3": text(
        lambda: t.DeepseekV3ForCausalLM(t.DeepseekV3Config(**GROUPED | LATENT | ROUTED | {"n_group": 2})),
        "q_a_proj", "kv_b_proj", "o_proj",
        experts=STACK, disk=("kv_b_proj", *GATED),
    ),
    "glm4_moe": text(
        lambda: t.Glm4MoeForCausalLM(t.Glm4MoeConfig(**GROUPED | ROUTED, head_dim=8)), "q_proj", "k_proj", "o_proj",
        experts=STACK, disk=("q_proj", *GATED),
    ),
    "afmoe": text(
        lambda: t.AfmoeForCausalLM(t.AfmoeConfig(**GROUPED | EXPERTS, head_dim=8, num_dense_layers=1)), "q_proj", "k_proj", "o_proj",
        experts=STACK, disk=("q_proj", *GATED), router="router.gate",
    ),
    "minimax": text(
        lambda: t.MiniMaxForCausalLM(
            t.MiniMaxConfig(**GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2)
        ),
        "q_proj", "k_proj", "o_proj", experts=STACK, disk=("q_proj", "w1", "w2", "w3"),
    ),
    "gpt_oss": text(
        lambda: t.GptOssForCausalLM(t.GptOssConfig(**GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2)),
        "q_proj", "k_proj", "o_proj", biased=True, experts=STACK, disk=("q_proj",),
    ),
    "llama4_text": text(
        lambda: t.Llama4ForCausalLM(
            t.Llama4TextConfig(
                **GROUPED, head_dim=8, num_local_experts=4, intermediate_size_mlp=48, interleave_moe_layer_step=1, num_experts_per_tok=1
            )
        ),
        "q_proj", "k_proj", "o_proj", experts=("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"), disk=("q_proj",),
    ),
    "granitemoe": text(
        lambda: t.GraniteMoeForCausalLM(t.GraniteMoeConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)),
        "q_proj", "k_proj", "o_proj", disk=("q_proj",),
        experts=("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"),
    ),
    "gemma3_text": text(
        lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**TIED, head_dim=8)), "o_proj", "k_proj", "up_proj", saved="q_norm",
        disk=("o_proj",), head="Gemma3TextForSequenceClassification",
    ),
    "phi3": text(lambda: t.Phi3ForCausalLM(t.Phi3Config(**GROUPED)), "qkv_proj", "gate_up_proj", "o_proj", disk=("qkv_proj",)),
    "gpt2": text(
        lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=96, n_embd=32, pad_token_id=0, n_layer=2, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
        ),
        "c_attn", "c_proj", "c_fc", saved="ln_f", biased=True, embedding="wte", head="GPT2ForSequenceClassification",
    ),
    "gpt_neox": text(
        lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**BERT, tie_word_embeddings=False)), "query_key_value", "dense", "dense_h_to_4h",
        saved="final_layer_norm", biased=True, embedding="embed_in", disk=("query_key_value", "embed_out"),
    ),
    "falcon": text(
        lambda: t.FalconForCausalLM(
            t.FalconConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, tie_word_embeddings=False)
        ),
        "query_key_value", "dense", "dense_h_to_4h", embedding="word_embeddings", disk=("query_key_value",),
    ),
    "opt": text(
        lambda: t.OPTForCausalLM(
            t.OPTConfig(vocab_size=96, hidden_size=32, word_embed_proj_dim=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
                        max_position_embeddings=64, tie_word_embeddings=False)
        ),
        "q_proj", "fc1", "out_proj", biased=True, disk=("q_proj", "fc1"),
    ),
    "bert": Family(
        lambda: t.BertForSequenceClassification(t.BertConfig(**BERT, num_labels=3)), ("query", "intermediate.dense", "value"), "classifier",
        biased=True, embedding="word_embeddings", lm_head=None, disk=("query", "value"), task="SEQ_CLS",
    ),
    "bert_mlm": Family(
        lambda: t.BertForMaskedLM(t.BertConfig(**BERT)), ("query", "intermediate.dense", "value"), "embeddings.LayerNorm",
        biased=True, embedding=None, lm_head=None, disk=("query",), task="FEATURE_EXTRACTION",
    ),
    "t5": Family(
        lambda: t.T5ForConditionalGeneration(
            t.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=96, decoder_start_token_id=0)
        ),
        ("q", "wo", "v"), "final_layer_norm", embedding="shared", lm_head=None, disk=("q", "wo"), task="SEQ_2_SEQ_LM", inputs="both",
    ),
    "speech_to_text": Family(
        lambda: t.Speech2TextForConditionalGeneration(
            t.Speech2TextConfig(
                d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
                decoder_ffn_dim=48, vocab_size=96, input_feat_per_channel=8, conv_channels=24, max_source_positions=64,
                max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
            )
        ),
        ("q_proj", "fc1", "out_proj"), "encoder.layer_norm", biased=True, embedding=None, lm_head=None,
        disk=("q_proj",), convolution=("conv_layers.0", "conv_layers.1"), task="SEQ_2_SEQ_LM", inputs="frames",
    ),
    "whisper": Family(
        lambda: t.WhisperForConditionalGeneration(
            t.WhisperConfig(
                d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
                decoder_ffn_dim=48, vocab_size=96, num_mel_bins=8, max_source_positions=16, max_target_positions=16, pad_token_id=0,
                bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
            )
        ),
        ("q_proj", "fc1", "out_proj"), "encoder.layer_norm", biased=True, embedding=None, lm_head=None,
        disk=("q_proj",), task="SEQ_2_SEQ_LM", inputs="sound",
    ),
    "llava": text(
        lambda: t.LlavaForConditionalGeneration(
            t.LlavaConfig(
                text_config=t.LlamaConfig(**GROUPED), vision_config=t.CLIPVisionConfig(**VISION, projection_dim=32), image_token_id=60
            )
        ),
        "q_proj", "k_proj", "linear_1", saved="multi_modal_projector", embedding="embed_tokens",
        disk=("q_proj", "lm_head", "linear_1"), convolution=("patch_embedding",),
    ),
    "qwen2_vl": text(
        lambda: t.Qwen2VLForConditionalGeneration(
            t.Qwen2VLConfig(
                text_config=GROUPED | {"rope_parameters": MROPE}, image_token_id=60, video_token_id=61, vision_start_token_id=62,
                vision_end_token_id=63, tie_word_embeddings=False,
                vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 14},
            )
        ),
        "q_proj", "k_proj", "down_proj", biased=True, disk=("q_proj", "down_proj"), convolution=("patch_embed.proj",),
    ),
    "qwen3_vl_moe": text(
        lambda: t.Qwen3VLMoeForConditionalGeneration(
            t.Qwen3VLMoeConfig(
                text_config=GROUPED | EXPERTS | {"head_dim": 8, "rope_parameters": MROPE}, image_token_id=60, video_token_id=61,
                vision_start_token_id=62, vision_end_token_id=63, tie_word_embeddings=False,
                vision_config={"depth": 1, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 4, "intermediate_size": 48,
                               "patch_size": 14, "deepstack_visual_indexes": [0]},
            )
        ),
        "q_proj", "k_proj", "o_proj", experts=STACK, disk=("q_proj",),
    ),
    "vit": Family(
        lambda: t.ViTForImageClassification(t.ViTConfig(**VISION, num_labels=3)), ("q_proj", "v_proj", "fc1"), "classifier", biased=True,
        embedding=None, lm_head=None, convolution=("projection",), disk=("query", "value"), task="FEATURE_EXTRACTION", inputs="picture",
    ),
    "siglip_vision": Family(
        lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**VISION)), ("q_proj", "v_proj", "fc1"), "post_layernorm", biased=True,
        embedding=None, lm_head=None, convolution=("patch_embedding",), task="FEATURE_EXTRACTION", inputs="picture",
    ),
}  # fmt: skip


def inputs(kind: str) -> dict[str, torch.Tensor]:
    """What a model of this kind is asked."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(3, 60, (2, 12), generator=generator)
    match kind:
        case "both":
            return {"input_ids": tokens, "decoder_input_ids": tokens[:, :6]}
        case "sound":
            return {"input_features": torch.randn(2, 8, 32, generator=generator), "decoder_input_ids": tokens[:, :6]}
        case "frames":
            return {"input_features": torch.randn(2, 32, 8, generator=generator), "decoder_input_ids": tokens[:, :6]}
        case "picture":
            return {"pixel_values": torch.randn(2, 3, 28, 28, generator=generator)}
    return {"input_ids": tokens}
