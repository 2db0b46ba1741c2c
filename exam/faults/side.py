"""Faults in what stands beside the weights: configuration, generation, tokenizer, templates, remote code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exam.cases import Case
from exam.faults.registry import Fault, enter, in_files
from exam.grid import own_base

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer.json"
TOKENIZER_CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"


def edit(path: Path, **changes: Any) -> None:
    """Sets keys of a JSON object; None removes one."""
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def _enter(name: str, file: str, plant: Callable[[Path], object], seen: str = "") -> None:
    def planted(case: Case) -> None:
        plant(case.merged / file)

    enter(Fault(name, "side", {"C7": file}, plant=planted, family="llama", seen=seen))


def _edits(name: str, file: str, seen: str = "", **changes: Any) -> None:
    _enter(name, file, lambda path: edit(path, **changes), seen)


def _without(name: str, file: str, seen: str = "") -> None:
    _enter(name, file, Path.unlink, seen)


_edits("tie_flag_flipped", CONFIG, "transformers#45127, peft#2777, peft#2972, unsloth#1971", tie_word_embeddings=True)
_edits("vocabulary_off_by_one", CONFIG, vocab_size=97)
_edits("rope_theta_changed", CONFIG, rope_parameters={"rope_theta": 500000.0, "rope_type": "default"}, rope_theta=500000.0)
_edits("norm_epsilon_changed", CONFIG, rms_norm_eps=1e-5)
_edits("number_of_heads_changed", CONFIG, num_attention_heads=8)
_edits("another_dtype_announced", CONFIG, dtype="float64", torch_dtype=None)
_edits("dtype_lost", CONFIG, dtype=None, torch_dtype=None)
_edits("stale_quantisation", CONFIG, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
_edits("layers_announced_but_gone", CONFIG, num_hidden_layers=9)
_edits("draft_layer_announced_but_gone", CONFIG, num_nextn_predict_layers=1)
_edits("another_class", CONFIG, "zoo#969: a text-only configuration beside another model", architectures=["MistralForCausalLM"])
_edits("another_architecture", CONFIG, "zoo#969", architectures=["MistralForCausalLM"], model_type="mistral")
_edits("code_announced", CONFIG, auto_map={"AutoModelForCausalLM": "modeling_x.Evil"})
_edits("another_weight_file_named", CONFIG, transformers_weights="consolidated.safetensors")
_edits("eos_changed_in_config", CONFIG, eos_token_id=1)
_edits("eos_changed_in_generation", GENERATION, "LLaMA-Factory#2075: never stops", eos_token_id=1)
_edits("end_of_text_suppressed", GENERATION, suppress_tokens=[2])
_edits("temperature_lost", GENERATION, temperature=None)
_edits("eos_token_changed", TOKENIZER_CONFIG, eos_token="<pad>")
_edits("special_token_lost", TOKENIZER_CONFIG, "LLaMA-Factory#2075", eos_token=None)
_edits("preprocessor_changed", "preprocessor_config.json", size=225)
_without("config_lost", CONFIG)
_without("generation_config_lost", GENERATION, "unsloth#5410, tinker#582")
_without("tokenizer_lost", TOKENIZER)
_without("tokenizer_config_lost", TOKENIZER_CONFIG)
_without("chat_template_lost", TEMPLATE)
_without("code_lost", "modeling_own.py")
_enter("config_is_no_json", CONFIG, lambda path: path.write_text("{"))
_enter("chat_template_changed", TEMPLATE, lambda path: path.write_text(path.read_text().replace("assistant:", "Assistant:")))
_enter("tokenizer_truncated", TOKENIZER, lambda path: path.write_bytes(path.read_bytes()[:-200]))
_enter("code_changed", "modeling_own.py", lambda path: path.write_text("# not the base's\n"))
_enter("code_added", "modeling_x.py", lambda path: path.write_text("import os\n"))


def rewrite_tokenizer(case: Case, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((case.merged / TOKENIZER).read_text())
    change(data)
    (case.merged / TOKENIZER).write_text(json.dumps(data))


@in_files("llama", C7=TOKENIZER)
def two_tokens_swapped(case: Case) -> None:
    def swap(data: dict[str, Any]) -> None:
        vocabulary = data["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    rewrite_tokenizer(case, swap)


@in_files("llama", C7=TOKENIZER)
def token_beyond_the_embedding(case: Case) -> None:
    rewrite_tokenizer(case, lambda data: data["added_tokens"].append(data["added_tokens"][-1] | {"id": 96, "content": "<new>"}))


@in_files("llama", C7=TOKENIZER)
def pre_tokenizer_changed(case: Case) -> None:
    rewrite_tokenizer(case, lambda data: data.update(pre_tokenizer={"type": "WhitespaceSplit"}))


@in_files("llama", C7=TOKENIZER)
def token_added_in_a_file_of_its_own(case: Case) -> None:
    (case.merged / "added_tokens.json").write_text('{"zz": 40}')


@in_files("llama", C7=TEMPLATE)
def template_of_an_incomplete_adapter_taken(case: Case) -> None:
    """A template beside the adapter counts only where a whole tokenizer lies there."""
    (case.adapter / TEMPLATE).write_text("{{ messages }}")
    shutil.copy(case.adapter / TEMPLATE, case.merged / TEMPLATE)


@in_files("llama", C7="base: identity", seen="zoo#810, peft#1043: merged onto another base")
def another_base_than_the_declared(_: Case) -> dict[str, Any]:
    return {"base_digest": "0" * 64}


@in_files("llama", C7=GENERATION)
def generation_settings_of_nobody(case: Case) -> None:
    """The base has no generation_config.json; the merge brings one that never lets the text end."""
    own_base(case)
    (case.base / GENERATION).unlink()
    (case.merged / GENERATION).write_text('{"bos_token_id": 1, "eos_token_id": 2, "suppress_tokens": [2]}')


@in_files("llama", C7="adapter_config.json")
def adapter_configuration_left_behind(case: Case) -> None:
    """transformers takes a directory with this file for an adapter: it looks for the adapter's weights and never reads the merged ones."""
    shutil.copy(case.adapter / "adapter_config.json", case.merged)
