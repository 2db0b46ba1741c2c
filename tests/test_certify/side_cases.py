"""Checkpoints with everything that stands beside the weights, saved again by transformers; the faults are in exam/faults/side.py."""

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
from exam.faults.side import edit

TRUNCATION = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
CODE = {"AutoTokenizer": ["evil/repo--tok.Tok", None]}
PLAN = {"layers.*.mlp.down_proj": "rowwise"}
Planted = tuple[str, dict[str, object], str]  # a file, the keys set in the merged one, what the finding says
UNREAD: dict[str, Planted] = {  # what transformers drops as it loads, and other loaders obey
    "tokenizer_code": (
        "tokenizer_config.json",
        {"auto_map": CODE},
        'auto_map is {"AutoTokenizer": ["evil/repo--tok.Tok", null]}, absent was',
    ),
    "tokenizer_file": ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.99.0.0.json"]}, "fast_tokenizer_files is ["),
    "truncation": ("tokenizer.json", {"truncation": TRUNCATION}, 'truncation is {"direction": "Right", "max_length": 1'),
    "padding": ("tokenizer.json", {"padding": PADDING}, 'padding is {"strategy": {"Fixed": 8}'),
    "second_dtype": ("config.json", {"dtype": "bfloat16", "torch_dtype": "float16"}, "torch_dtype is float16, bfloat16 was expected"),
    "tensor_plan": ("config.json", {"base_model_tp_plan": PLAN}, "base_model_tp_plan is {"),
    "pipeline_plan": ("config.json", {"base_model_pp_plan": {"norm": [["x"], ["x"]]}}, "base_model_pp_plan is {"),
    "shard_plan": ("config.json", {"base_model_fsdp_plan": {"layers.*": "x"}}, "base_model_fsdp_plan is {"),
    "distribution": ("config.json", {"distributed_config": {"tp_size": 2}}, "distributed_config is {"),
    "attention": ("config.json", {"attn_implementation": "eager"}, 'attn_implementation is "eager", absent was expected'),
    "kernel": ("config.json", {"_attn_implementation": "someone/kernel"}, '_attn_implementation is "someone/kernel", absent was'),
    "kernel_of_version_4": ("config.json", {"_attn_implementation_internal": "x"}, '_attn_implementation_internal is "x", absent was'),
    "experts": ("config.json", {"_experts_implementation": "eager"}, '_experts_implementation is "eager", absent was expected'),
    "attribute": ("config.json", {"_sliding_window_pattern": 2}, "_sliding_window_pattern is 2, absent was expected"),
    "generation": ("config.json", {"temperature": 0.1}, "temperature is 0.1, absent was expected"),
}


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


def in_version_4(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration with its rotary embedding, dtype and defaults of generation as transformers 4 wrote them, at every level."""
    kept = {key: in_version_4(value) if isinstance(value, dict) and "model_type" in value else value for key, value in config.items()}
    rope = kept.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        kept |= {"rope_theta": rope["rope_theta"], "rope_scaling": {k: v for k, v in rope.items() if k != "rope_theta"}}
        del kept["rope_parameters"]
    return {"temperature": 1.0, "num_beams": 1, "torch_dtype": kept.pop("dtype", None)} | kept


def with_more(base: Path) -> None:
    """Files that some bases have besides."""
    (base / "preprocessor_config.json").write_text('{"size": 224}')
    (base / "modeling_own.py").write_text("# the base's own\n")
    (base / "LICENSE").write_text("MIT")


def change_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Rewrite the one weight file of a directory."""
    path = directory / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
