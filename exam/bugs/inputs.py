"""What the engine with a bug is given: a base and an adapter by name, each made once."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from exam.cases import colossal_adapter, edit, read, write
from exam.families import FAMILIES, make_adapter, make_base
from tests.matrix import families, trial
from tests.matrix.features import FEATURES

RHO = 0.1
CONFIG, SAFE, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"


@dataclass(frozen=True, slots=True)
class Inputs:
    """output: the declared output dtype."""

    base: Path
    adapter: Path
    output: str = "same"


def _peft(family: str, dtype: str = "bf16", output: str = "same", **options: Any) -> Callable[[Path], Inputs]:
    def make(root: Path) -> Inputs:
        make_base(family, dtype, root / "base", "sharded")
        make_adapter(family, root / "base", root / "adapter", RHO, **options)
        return Inputs(root / "base", root / "adapter", output)

    return make


def _experts(family: str, dtype: str = "bf16", output: str = "same") -> Callable[[Path], Inputs]:
    def make(root: Path) -> Inputs:
        make_base(family, dtype, root / "base", "sharded")
        colossal_adapter(root / "base", root / "adapter", FAMILIES[family].experts)
        return Inputs(root / "base", root / "adapter", output)

    return make


def _kind(family: str, feature: str) -> Callable[[Path], Inputs]:
    """A cell of the support table: what PEFT makes of that feature, trained."""
    return _trained(family, **FEATURES[feature](families.FAMILIES[family]) or {})


def _trained(family: str, **options: Any) -> Callable[[Path], Inputs]:
    def make(root: Path) -> Inputs:
        chosen, base = families.FAMILIES[family], trial.make_base(family, root)
        live = trial.trained(trial.load(base), options, chosen)
        with trial.quiet():
            live.save_pretrained(root / "adapter")
        return Inputs(base, root / "adapter")

    return make


def _spoiled(make: Callable[[Path], Inputs], spoil: Callable[[Inputs], None]) -> Callable[[Path], Inputs]:
    def spoiled(root: Path) -> Inputs:
        inputs = make(root)
        spoil(inputs)
        return inputs

    return spoiled


def _without(part: str) -> Callable[[Inputs], None]:
    """The adapter's tensors whose name has this part are gone."""

    def drop(inputs: Inputs) -> None:
        path = inputs.adapter / SAFE
        save_file({name: tensor for name, tensor in load_file(path).items() if part not in name}, path)

    return drop


def _with_a_tensor_of_nobody(inputs: Inputs) -> None:
    path = inputs.adapter / SAFE
    save_file(load_file(path) | {"base_model.model.model.layers.0.self_attn.inv_freq": torch.ones(8)}, path)


def _as_views_of_one_storage(inputs: Inputs) -> None:
    """torch.save keeps views as views: every tensor but the first begins behind the start of its storage."""
    held = torch.load(inputs.adapter / PICKLE, weights_only=True)
    storage, start, views = torch.cat([tensor.flatten() for tensor in held.values()]), 0, {}
    for name, tensor in held.items():
        views[name] = storage[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    torch.save(views, inputs.adapter / PICKLE)


def _configured(**changes: Any) -> Callable[[Inputs], None]:
    """Fields of adapter_config.json changed; None removes one."""

    def change(inputs: Inputs) -> None:
        path = inputs.adapter / CONFIG
        config = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return change


def _named_twice(inputs: Inputs) -> None:
    """One module under the names of two module trees."""
    path = inputs.adapter / SAFE
    held = load_file(path)
    twice = [name for name in held if ".h.0.attn.c_attn" in name]
    save_file(held | {name.replace("model.transformer.h.0.", "model.h.0."): held[name].clone() for name in twice}, path)


def _ambiguous(inputs: Inputs) -> None:
    """Two tensors of the base for one parameter."""
    shards, key = read(inputs.base), "transformer.h.0.attn.c_attn.weight"
    file = next(file for file, tensors in shards.items() if key in tensors)
    shards[file]["h.0.attn.c_attn.weight"] = shards[file][key].clone().mul_(0.5)
    write(inputs.base, shards)


def _too_large_for_fp16(inputs: Inputs) -> None:
    def enlarge(key: str, tensor: torch.Tensor) -> torch.Tensor:
        if key == "model.embed_tokens.weight":
            tensor[3, 5] = 1e5
        return tensor

    edit(inputs.base, enlarge)


def _with_a_stale_file(inputs: Inputs) -> None:
    torch.save({"old": torch.zeros(2)}, inputs.base / "pytorch_model.bin")


MIXED: dict[str, Any] = {
    "modules_to_save": ["lm_head", "input_layernorm"],
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {"k_proj": 4, r".*\.1\..*\.down_proj": 6},
}
SQUARE = r".*\.(attn\.c_proj|q_proj|o_proj)"

CASES: Mapping[str, Callable[[Path], Inputs]] = {
    "llama": _peft("llama", **MIXED),
    "llama rsLoRA": _peft("llama", use_rslora=True),
    "llama square": _peft("llama", target_modules=SQUARE),
    "llama excluded": _peft("llama", exclude_modules=["k_proj"]),
    "llama layer 1": _peft("llama", layers_to_transform=[1]),
    "llama → fp32": _peft("llama", output="fp32"),
    "llama fp32 → fp16": _peft("llama", "fp32", "fp16"),
    "llama fp32": _peft("llama", "fp32"),
    "llama fp16": _peft("llama", "fp16"),
    "llama too large": _spoiled(_peft("llama", "fp32", "fp16"), _too_large_for_fp16),
    "llama without α": _spoiled(_peft("llama"), _configured(lora_alpha=None)),
    "llama truncated": _spoiled(_peft("llama"), _without("layers.1.self_attn.q_proj")),
    "llama head lost": _spoiled(_peft("llama", **MIXED), _without("lm_head")),
    "llama stranger": _spoiled(_peft("llama"), _with_a_tensor_of_nobody),
    "llama aLoRA": _spoiled(_peft("llama"), _configured(alora_invocation_tokens=[1, 2])),
    "llama LoHa": _spoiled(_peft("llama"), _configured(peft_type="LOHA")),
    "llama PiSSA": _spoiled(_peft("llama"), _configured(init_lora_weights="pissa")),
    "llama α NaN": _spoiled(_peft("llama"), _configured(lora_alpha=float("nan"))),
    "llama other r": _spoiled(_peft("llama"), _configured(r=8)),
    "llama rsLoRA as text": _spoiled(_peft("llama"), _configured(use_rslora="false")),
    "llama patterns at odds": _spoiled(_peft("llama"), _configured(alpha_pattern={"down_proj": 4, "layers.1.mlp.down_proj": 8})),
    "llama half a pair": _spoiled(_peft("llama"), _without("layers.1.self_attn.q_proj.lora_B")),
    "gpt2 named twice": _spoiled(_peft("gpt2"), _named_twice),
    "gpt2 ambiguous": _spoiled(_peft("gpt2"), _ambiguous),
    "llama stale file": _spoiled(_peft("llama"), _with_a_stale_file),
    "gpt2": _peft("gpt2", modules_to_save=["ln_f"]),
    "gpt2 square": _peft("gpt2", target_modules=SQUARE),
    "deepseek": _experts("deepseek_v3"),
    "deepseek views": _spoiled(_experts("deepseek_v3"), _as_views_of_one_storage),
    "deepseek → fp16": _experts("deepseek_v3", output="fp16"),
    "mixtral": _experts("mixtral"),
    "mixtral stacked": _kind("mixtral", "experts"),
    "llama DoRA": _kind("llama", "dora"),
    "llama embedding": _kind("llama", "embedding"),
    "llama embedding DoRA": _kind("llama", "embedding_dora"),
    "llama tokens": _kind("llama", "token_rows"),
    "llama head rows": _trained("llama_tied", target_modules=["q_proj"], trainable_token_indices={"lm_head": [3, 7]}),
    "llama unnamed": _spoiled(_peft("llama"), _configured(target_modules=["k_proj", "down_proj"])),
    "opt positions": _trained("opt", target_modules=["q_proj", "embed_positions"]),
    "gemma3 of old": _spoiled(_trained("gemma3_text", target_modules=["embed_tokens"]), _configured(peft_version=None)),
    "qwen2 biases": _kind("qwen2", "bias_all"),
    "qwen2 lora_bias": _kind("qwen2", "lora_bias"),
}  # fmt: skip


class Shelf:
    """Inputs, each made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: dict[str, Inputs] = {}

    def __getitem__(self, case: str) -> Inputs:
        if case not in self._made:
            room = self.root / str(len(self._made))
            room.mkdir()
            self._made[case] = CASES[case](room)
        return self._made[case]
