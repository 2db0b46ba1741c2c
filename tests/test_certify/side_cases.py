"""Checkpoints with everything that stands beside the weights, saved again by transformers, and faults planted there: the exam of C7."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from certify.checks.c7_side_files import SideFiles
from certify.finding import Finding, Outcome
from certify.inputs.checkpoint import open_checkpoint

Plant = Callable[[Path], None]
SIDE_FAULTS: dict[str, tuple[str, Plant]] = {}  # name → (the file that C7 must name, what spoils the merged directory)


def judged(base: Path, merged: Path, *adapters: Path, output_dtype: str = "same", digest: str | None = None) -> list[Finding]:
    """C7 alone."""
    side = SideFiles(open_checkpoint(base), open_checkpoint(merged), adapters, output_dtype, digest)
    return [side.examine(name) for name in side.subjects]


def failed(findings: list[Finding]) -> dict[str, str]:
    """File → sentence."""
    return {finding.subject: finding.sentence for finding in findings if finding.outcome is not Outcome.PASSED}


def saved_again(base: Path, out: Path, dtype: torch.dtype | str = "auto") -> Path:
    """Model and tokenizer loaded and saved by transformers, as a merge with PEFT ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(out)
        transformers.AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return out


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object; None removes one."""
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def older(base: Path, out: Path) -> Path:
    """The same checkpoint as transformers 4 would have left it: no defaults written out, old spellings, special tokens in a file."""
    shutil.copytree(base, out)
    config = json.loads((out / "config.json").read_text())
    defaults = json.loads(json.dumps(transformers.AutoConfig.for_model(config["model_type"]).to_dict(), default=str))
    kept = {k: v for k, v in config.items() if k in ("model_type", "architectures", "vocab_size") or v != defaults.get(k)}
    rope = kept.pop("rope_parameters", None)
    kept |= {"rope_theta": rope["rope_theta"]} if rope else {}
    kept["torch_dtype"] = kept.pop("dtype", None) or kept.get("torch_dtype")
    (out / "config.json").write_text(json.dumps(kept | {"transformers_version": "4.40.0", "_name_or_path": "somewhere/else"}))
    template = (out / "chat_template.jinja").read_text()
    (out / "chat_template.jinja").unlink()
    special = {"bos_token": {"content": "<s>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}}
    edit(out / "tokenizer_config.json", chat_template=template, tokenizer_class="PreTrainedTokenizerFast", backend=None, is_local=None)
    (out / "special_tokens_map.json").write_text(json.dumps(special | {"eos_token": "</s>", "pad_token": "<pad>"}))
    return out


def side_fault(file: str) -> Callable[[Plant], Plant]:
    """Registers a fault under its function's name."""

    def register(plant: Plant) -> Plant:
        SIDE_FAULTS[plant.__name__] = file, plant
        return plant

    return register


def _edits(name: str, file: str, **changes: Any) -> None:
    SIDE_FAULTS[name] = file, lambda merged: edit(merged / file, **changes)


def _without(name: str, file: str) -> None:
    SIDE_FAULTS[name] = file, lambda merged: (merged / file).unlink()


_edits("tie_flag_flipped", "config.json", tie_word_embeddings=True)
_edits("vocabulary_off_by_one", "config.json", vocab_size=321)
_edits("rope_theta_changed", "config.json", rope_parameters={"rope_theta": 500000.0, "rope_type": "default"}, rope_theta=500000.0)
_edits("norm_epsilon_changed", "config.json", rms_norm_eps=1e-5)
_edits("dtype_drift", "config.json", dtype="float16", torch_dtype=None)
_edits("dtype_lost", "config.json", dtype=None, torch_dtype=None)
_edits("stale_quantisation", "config.json", quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
_edits("layer_announced_but_gone", "config.json", num_hidden_layers=9)
_edits("another_class", "config.json", architectures=["MistralForCausalLM"])
_edits("code_announced", "config.json", auto_map={"AutoModelForCausalLM": "modeling_x.Evil"})
_edits("eos_changed_in_config", "config.json", eos_token_id=255)
_edits("eos_changed_in_generation", "generation_config.json", eos_token_id=255)
_edits("temperature_lost", "generation_config.json", temperature=None)
_edits("eos_token_changed", "tokenizer_config.json", eos_token="<pad>")
_without("config_lost", "config.json")
_without("generation_config_lost", "generation_config.json")
_without("tokenizer_lost", "tokenizer.json")
_without("chat_template_lost", "chat_template.jinja")


@side_fault("chat_template.jinja")
def chat_template_changed(merged: Path) -> None:
    path = merged / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant:", "Assistant:"))


@side_fault("tokenizer.json")
def tokenizer_truncated(merged: Path) -> None:
    path = merged / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-200])


@side_fault("tokenizer.json")
def two_tokens_swapped(merged: Path) -> None:
    data = json.loads((merged / "tokenizer.json").read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (merged / "tokenizer.json").write_text(json.dumps(data))


@side_fault("tokenizer.json")
def token_beyond_the_embedding(merged: Path) -> None:
    data = json.loads((merged / "tokenizer.json").read_text())
    data["added_tokens"].append(data["added_tokens"][-1] | {"id": 320, "content": "<new>"})
    (merged / "tokenizer.json").write_text(json.dumps(data))


@side_fault("modeling_x.py")
def code_added(merged: Path) -> None:
    (merged / "modeling_x.py").write_text("import os\n")


@side_fault("preprocessor_config.json")
def preprocessor_changed(merged: Path) -> None:
    (merged / "preprocessor_config.json").write_text('{"size": 225}')


@side_fault("modeling_own.py")
def code_changed(merged: Path) -> None:
    (merged / "modeling_own.py").write_text("# not the base's\n")


def with_more(base: Path) -> None:
    """Files that some bases have besides."""
    (base / "preprocessor_config.json").write_text('{"size": 224}')
    (base / "modeling_own.py").write_text("# the base's own\n")
    (base / "LICENSE").write_text("MIT")


def change_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Rewrite the one weight file of a directory."""
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
