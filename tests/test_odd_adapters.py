"""Adapters that PEFT makes, and that are not what they look like: each is merged to what PEFT runs, or refused; the gate agrees."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

import certify
import merge
from certify.verdict import Verdict
from merge.errors import MergeError
from tests import reference
from tests.matrix import trial
from tests.matrix.families import BERT, FAMILIES, GROUPED, LATENT, ROUTED, TIED

Options = dict[str, Any]
TOKENS = {"input_ids": torch.arange(3, 15)[None]}
SPEECH = {
    **{
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "conv_dim": (16,),
        "conv_kernel": (10,),
    },
    **{"conv_stride": (5,), "num_feat_extract_layers": 1, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2},
}
SMALL_BIT = {"embedding_size": 8, "hidden_sizes": [8] * 4, "depths": [1] * 4, "num_groups": 2, "num_labels": 3}
SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**GROUPED)),
    "tied": lambda: t.LlamaForCausalLM(t.LlamaConfig(**TIED)),
    "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**TIED, head_dim=8)),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**TIED, head_dim=8)),
    "headless": lambda: t.GPT2Model(t.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "opt": lambda: t.OPTForCausalLM(
        t.OPTConfig(vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4, word_embed_proj_dim=32)
    ),
    "bit": lambda: t.BitForImageClassification(t.BitConfig(**SMALL_BIT)),
    "bert": lambda: t.BertForMaskedLM(t.BertConfig(**BERT)),
    "wavlm": lambda: t.WavLMModel(t.WavLMConfig(**SPEECH)),
    "t5": lambda: t.T5ForConditionalGeneration(
        t.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, vocab_size=96, decoder_start_token_id=0)
    ),
    "siglip": FAMILIES["siglip_vision"].build,
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=4, n_positions=64)),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**GROUPED, **SLIDING)),
    "deepseek": lambda: t.DeepseekV3ForCausalLM(t.DeepseekV3Config(**GROUPED | LATENT | ROUTED | {"n_group": 2})),
}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def made(model: str, room: Path) -> Path:
    return trial.made(MODELS[model], room / model)


def saved(base: Path, folder: Path, options: Options, **changes: Any) -> Any:
    """A real adapter, every trained number moved, and the live model that it was saved from. changes: fields of its configuration."""
    with trial.quiet(), torch.no_grad():
        torch.manual_seed(3)
        live = peft.get_peft_model(trial.load(base), peft.LoraConfig(**{"r": 4, "lora_alpha": 8} | options))
        for value in live.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape) * 0.1)
        live.save_pretrained(folder)
    told(folder, **changes)
    return live.eval()


def told(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(path)).items()}, path)


def far(live: Any, merged: Path, inputs: dict[str, Any]) -> float:
    """Of the merged checkpoint's outputs from those of base + unmerged adapter."""
    with torch.no_grad(), trial.quiet():
        return reference.distance(trial.load(merged).eval()(**inputs)[0], live(**inputs)[0])


LAYERS = {"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]]}
MERGED: dict[str, tuple[str, Options, Options]] = {  # base, options, what is written into the configuration afterwards
    "rows of a scaled embedding": ("gemma3", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]}, {}),
    "a scaled embedding": ("gemma3", {"target_modules": ["embed_tokens"]}, {}),
    "an embedding that was scaled later": ("gemma2", {"target_modules": ["embed_tokens"]}, {"peft_version": "0.17.1"}),
    "layers counted by another name": ("headless", {"target_modules": ["c_attn"], "layer_replication": [[0, 2], [1, 2]]}, {}),
    "positions, whole": ("opt", {"target_modules": ["q_proj"], "modules_to_save": ["embed_positions"]}, {}),
    "rows of a head alone": ("tied", {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [3, 5]}}, {}),
    "other rows of each": ("tied", {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3], "lm_head": [4]}}, {}),
    "the same rows of both": ("tied", {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3], "lm_head": [3]}}, {}),
    "all-linear, the word": ("llama", {"target_modules": "all-linear"}, {"target_modules": "all-linear"}),
    "all-linear, a tied head aside": ("gpt2", {"target_modules": "all-linear"}, {"target_modules": "All-Linear"}),
    "a parameter by its name": ("llama", {"target_modules": [], "target_parameters": ["q_proj.weight"]}, {}),
    "layers of one kind": ("deepseek", LAYERS | {"target_modules": ["o_proj"]}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", MERGED)
def test_what_peft_runs_is_what_is_merged(case: str, room: Path, tmp_path: Path) -> None:
    model, options, changes = MERGED[case]
    base = made(model, room)
    live = saved(base, tmp_path / "adapter", options, **changes)
    merge.merge(base, tmp_path / "adapter", tmp_path / "merged", workers=1)
    assert far(live, tmp_path / "merged", TOKENS) <= trial.LOGITS
    certificate = certify.judge(base, tmp_path / "adapter", tmp_path / "merged", level="weights")
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason


Q = {"target_modules": ["q_proj"]}
REFUSED: dict[str, tuple[str, Options, Options, str, str]] = {  # …, the engine's sentence, the gate's
    "positions that count from two": (
        "opt", {"target_modules": ["embed_positions"]}, {}, "OPTLearnedPositionalEmbedding does more with its weight", "does more with",
    ),
    "rows of them": ("opt", Q | {"trainable_token_indices": {"embed_positions": [3]}}, {}, "does more with its weight", "does more with"),
    "weights that are standardised": ("bit", {"target_modules": ["conv2"]}, {}, "WeightStandardizedConv2d does more", "does more with"),
    "a scaled embedding, before 0.18": (
        "gemma3", {"target_modules": ["embed_tokens"]}, {"peft_version": None}, "PEFT before 0.18 did not", "PEFT before 0.18 left out",
    ),
    "rows of a scaled embedding, before 0.18": (
        "gemma3", Q | {"trainable_token_indices": [3]}, {"peft_version": "0.17.1"}, "PEFT before 0.18 did not", "PEFT before 0.18 left",
    ),
    "rows shared by a head with a bias": (
        "bert", {"target_modules": ["query"], "trainable_token_indices": [3]}, {}, "decoder has a bias", "leaves the bias of",
    ),
    "rows, and a head that is trained besides": (
        "tied", {"target_modules": ["lm_head"], "trainable_token_indices": [3]}, {}, "for what is tied to it", "false was expected",
    ),
    "pairs that no field names": (
        "llama", {"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["v_proj"]}, "no field of", "no field of",
    ),
    "modules that PEFT would choose": (
        "llama", Q, {"target_modules": None}, "target_modules names no module", "PEFT would choose the modules",
    ),
    "one name for a list of names": (
        "llama", Q | {"modules_to_save": ["lm_head"]}, {"modules_to_save": "lm_head"}, "a list of names was expected", "no list of names",
    ),
    "a head that nobody holds": ("llama", Q, {"task_type": "SEQ_CLS"}, "score.weight", "neither it nor the base holds score.weight"),
    "rows of a head that shares none": (
        "llama", Q | {"trainable_token_indices": {"lm_head": [3]}}, {"trainable_token_indices": {"embed_tokens": [3]}},
        "names no rows of it", "says which rows of lm_head.weight",
    ),
    "every weight": ("llama", Q, {"target_modules": [], "target_parameters": ["weight"]}, "truncated", "its file holds no tensor"),
    "a query that is never called": (
        "wavlm", Q, {}, "read by the model without calling their layers", "the model never calls its module",
    ),
    "a bias beside it": (
        "wavlm", Q | {"lora_bias": True}, {}, "read by the model without calling their layers", "the model never calls its module",
    ),
    "an output projection that is never called": (
        "siglip", {"target_modules": ["head.attention.out_proj"]}, {}, "read by the model without", "the model never calls its module",
    ),
    "a layer in the place of another kind": (
        "qwen2", Q | {"layer_replication": [[1, 2], [0, 1]]}, {}, "a layer where the base has one of another kind", "PEFT ran both",
    ),
    "a dense layer twice": (
        "deepseek", {"target_modules": ["o_proj"], "layer_replication": [[0, 1], [0, 2]]}, {}, "copy of layer 0", "cannot say that",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_weight_can_be_is_refused(case: str, room: Path, tmp_path: Path) -> None:
    model, options, changes, sentence, gates = REFUSED[case]
    base = made(model, room)
    saved(base, tmp_path / "adapter", options, **changes)
    with pytest.raises(MergeError, match=sentence) as refusal:
        merge.merge(base, tmp_path / "adapter", tmp_path / "merged", workers=1)
    assert refusal.value.exit_code == 3
    assert "Nothing was written." in str(refusal.value)
    assert not (tmp_path / "merged").exists()
    certificate = certify.judge(base, tmp_path / "adapter", base, level="weights")
    assert certificate.verdict is not Verdict.CERTIFIED
    assert any(gates in finding.sentence for finding in certificate.findings), certificate.reason


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architectures": None}, ""),
        ({"architectures": ["NobodyForCausalLM"], "model_type": "nobody"}, ""),
        ({"layer_types": ["full_attention"]}, "layer_types names 1 layers, and the base holds 2"),
    ],
    ids=str,
)
def test_layers_of_a_base_that_says_less(changes: Options, sentence: str, room: Path, tmp_path: Path) -> None:
    saved(made("llama", room), tmp_path / "adapter", LAYERS)
    base = shutil.copytree(room / "llama", tmp_path / "base")
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    if sentence:
        with pytest.raises(MergeError, match=sentence):
            merge.merge(base, tmp_path / "adapter", tmp_path / "merged", workers=1)
    else:
        merge.merge(base, tmp_path / "adapter", tmp_path / "merged", workers=1)
        assert json.loads((tmp_path / "merged" / "config.json").read_text())["num_hidden_layers"] == 3


def test_all_linear_demands_every_module(room: Path, tmp_path: Path) -> None:
    base = made("llama", room)
    saved(base, tmp_path / "adapter", {"target_modules": "all-linear"}, target_modules="all-linear")
    rewritten(tmp_path / "adapter", lambda tensors: {name: value for name, value in tensors.items() if "layers.1.mlp" not in name})
    with pytest.raises(MergeError, match=r"3 of 14 weights that target_modules(.|\n)*truncated"):
        merge.merge(base, tmp_path / "adapter", tmp_path / "merged")
    found = certify.judge(base, tmp_path / "adapter", base, level="weights").findings
    assert sum("its file holds no tensor for it" in finding.sentence for finding in found) == 3


def test_a_query_that_is_never_called_and_says_nothing(room: Path, tmp_path: Path) -> None:
    """WavLM hands its weights to a function of PyTorch: training leaves B at zero. It has no words either, and no embedding of any."""
    base = made("wavlm", room)
    saved(base, tmp_path / "adapter", {"target_modules": ["q_proj", "intermediate_dense"]})
    rewritten(tmp_path / "adapter", lambda tensors: {n: v * ("q_proj.lora_B" not in n) for n, v in tensors.items()})
    assert merge.merge(base, tmp_path / "adapter", tmp_path / "merged", workers=1).tensors["merged"] == 1
    certificate = certify.judge(base, tmp_path / "adapter", tmp_path / "merged", level="weights")
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason


def test_biases_as_peft_named_them_until_0_20(room: Path, tmp_path: Path) -> None:
    """T5's relative_attention_bias is an embedding; "bias" in its name was enough."""
    base = made("t5", room)
    saved(base, tmp_path / "adapter", {"target_modules": ["q"], "bias": "all"})
    relative = {name: value for name, value in reference.weights(base).items() if "bias" in name}
    rewritten(tmp_path / "adapter", lambda tensors: tensors | {f"base_model.model.{name}": value * 2 for name, value in relative.items()})
    merge.merge(base, tmp_path / "adapter", tmp_path / "merged", workers=1)
    after = reference.weights(tmp_path / "merged")
    assert relative
    assert all(torch.equal(after[name], value * 2) for name, value in relative.items())
    certificate = certify.judge(base, tmp_path / "adapter", tmp_path / "merged", level="weights")
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason
