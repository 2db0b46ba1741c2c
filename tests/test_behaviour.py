"""What a module does with its weight: the engine knows it from the class, the gate by running it; both must say the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as t
from torch import nn

from certify.expect import behaviour
from certify.expect.witness import hold_kinds
from merge.architecture import modules
from tests.matrix import trial
from tests.matrix.families import BERT, EXPERTS, GROUPED, LINEAR_ATTENTION

SPEECH = {
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48},
    **{"conv_dim": (16,), "conv_kernel": (10,), "conv_stride": (5,), "num_feat_extract_layers": 1},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
}
SEQUENCE = {
    **{"vocab_size": 96, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
}
WORDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
JAMBA = {**{"mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False, "num_experts": 4, "num_experts_per_tok": 2},
         **{"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}}  # fmt: skip
RELATIVE = {"relative_attention": True, "position_biased_input": False, "max_relative_positions": 16, "pos_att_type": ["c2p"]}
BIT = {"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4, "num_groups": 2}
ATTENTION = {f"encoder.layers.0.attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
MODELS: dict[str, tuple[Callable[[], Any], set[str], set[str]]] = {  # …, modules that do more, modules that are never called
    "llama": (lambda: t.LlamaForCausalLM(t.LlamaConfig(**GROUPED)), set(), set()),
    "falcon": (
        lambda: t.FalconForCausalLM(t.FalconConfig(vocab_size=96, hidden_size=32, num_attention_heads=4, num_hidden_layers=1)),
        set(), set(),
    ),
    "phimoe": (lambda: t.PhimoeForCausalLM(t.PhimoeConfig(**GROUPED, num_local_experts=4)), set(), set()),
    "gemma3": (lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**GROUPED, head_dim=8)), set(), set()),
    "opt": (
        lambda: t.OPTForCausalLM(t.OPTConfig(vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4)),
        {"model.decoder.embed_positions"}, set(),
    ),
    "whisper": (
        lambda: t.WhisperForConditionalGeneration(t.WhisperConfig(**SEQUENCE, **WORDS, num_mel_bins=8)),
        {"model.decoder.embed_positions"}, set(),
    ),
    "deberta": (lambda: t.DebertaV2Model(t.DebertaV2Config(**BERT, **RELATIVE)), set(), {"encoder.rel_embeddings"}),
    "mobilebert": (
        lambda: t.MobileBertForMaskedLM(t.MobileBertConfig(vocab_size=96, num_hidden_layers=1)),
        set(), {"cls.predictions.decoder", "cls.predictions.dense"},
    ),
    "wavlm": (lambda: t.WavLMModel(t.WavLMConfig(**SPEECH)), set(), ATTENTION),
    "wav2vec2": (
        lambda: t.Wav2Vec2ForXVector(t.Wav2Vec2Config(**SPEECH)), set(), {f"tdnn.{number}.kernel" for number in range(5)},
    ),
    "jamba": (
        lambda: t.JambaForCausalLM(t.JambaConfig(**GROUPED | JAMBA)),
        set(), {f"model.layers.0.mamba.{name}" for name in ("dt_proj", "conv1d")},
    ),
    "qwen3_next": (
        lambda: t.Qwen3NextForCausalLM(t.Qwen3NextConfig(**GROUPED | EXPERTS | LINEAR_ATTENTION)),
        set(), {"model.layers.0.linear_attn.conv1d"},
    ),
    "bit": (
        lambda: t.BitModel(t.BitConfig(**BIT)), {"embedder.convolution", *(f"encoder.stages.{n}.layers.0.conv2" for n in range(4))}, set(),
    ),
}  # fmt: skip


def test_a_probe_asks_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that others hold, or whose driver is too old, says nothing about a module; nor does the probe move anybody's chance."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name in ("get_rng_state", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, busy)
    module = nn.Linear(8, 8)
    before = torch.get_rng_state()
    assert behaviour.is_plain(module)
    assert torch.equal(torch.get_rng_state(), before)
    hold_kinds()
    assert torch.equal(torch.get_rng_state(), before)


def busy(*_: object) -> None:
    raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")


def test_a_module_that_shakes_its_inputs_while_it_learns_is_plain() -> None:
    class Shaken(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(nn.functional.dropout(inputs, 0.5, self.training))

    assert behaviour.is_plain(Shaken(8, 8).train())


@pytest.mark.parametrize("module", ["transformers.models.nowhere", "transformers.models.llama.modeling_llama"])
def test_a_class_without_source_is_taken_as_called(module: str) -> None:
    kind = type("Holder", (nn.Module,), {"__module__": module})
    assert behaviour.is_called(kind, "proj")


def of_the_gate(model: nn.Module) -> tuple[set[str], set[str]]:
    odd = {path for path, module in model.named_modules() if not _is_grouped(module) and not behaviour.is_plain(module)}
    holders = [(path, module, name) for path, module in model.named_modules() for name, child in module.named_children()
               if isinstance(child, modules.PLAIN)]  # fmt: skip
    return odd, {f"{path}.{name}".lstrip(".") for path, module, name in holders if not behaviour.is_called(type(module), name)}


def _is_grouped(module: nn.Module) -> bool:
    """PEFT itself does not merge these."""
    return isinstance(module, modules.CONVOLUTIONS) and module.groups > 1


@pytest.mark.parametrize("name", MODELS)
def test_engine_and_gate_agree(name: str) -> None:
    build, more, silent = MODELS[name]
    with trial.quiet(), torch.device("meta"):
        model = build()
    foreign = {path for path in modules.foreign(model) if not _is_grouped(model.get_submodule(path))}
    odd, uncalled = of_the_gate(model)
    assert (odd, uncalled) == (foreign, set(modules.bypassed(model)))
    assert more <= odd
    assert uncalled == silent


@pytest.mark.parametrize(("options", "plain"), [({}, True), ({"dilation": 2}, False), ({"padding_mode": "reflect", "padding": 1}, False)])
def test_convolutions_beside_which_peft_puts_another(options: dict[str, Any], plain: bool) -> None:
    """PEFT's own one is not dilated and pads with zeros."""
    module = nn.Conv1d(4, 4, 3, **options)
    assert behaviour.is_plain(module) is plain
    assert (not modules.foreign(nn.Sequential(module))) is plain


def test_factors_of_embeddings() -> None:
    for scaled in (True, False):
        with torch.device("meta"), trial.quiet():
            model = t.BartModel(t.BartConfig(**SEQUENCE, scale_embedding=scaled))
        assert bool(modules.scaled(model)) is scaled
        assert behaviour.factor(model.shared) == (32**0.5 if scaled else 1.0)
