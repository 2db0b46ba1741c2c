"""The smallest question that the gate can be asked: a one-layer Llama in two shards, a LoRA adapter on q_proj, a sound and a red merge."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HIDDEN, INNER, VOCABULARY, RANK = 16, 32, 24, 4
LAYER = "model.layers.0."
TOUCHED = f"{LAYER}self_attn.q_proj.weight"
FILES = 2 + 3 + 3 + 1 + 2  # of the adapter, base and merged (two shards and an index each); config.json; what the two loaders say
SUBJECTS = FILES + 12 + 1 + 4 + 2  # tensors, accounts, units (embedding, layer, norm, head), the gate itself

Tensors = dict[str, Tensor]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


@dataclass(frozen=True)
class Question:
    """Three directories; `words` are the gate's options, always in the form that is safe."""

    base: Path
    adapter: Path
    merged: Path

    @property
    def words(self) -> list[str]:
        return [f"--base={self.base}", f"--adapter={self.adapter}", f"--merged={self.merged}"]

    @property
    def spaced(self) -> list[str]:
        return [part for word in self.words for part in word.split("=", 1)]


def make(room: Path, *, red: bool = False) -> Question:
    """Write a question below `room`; `red` leaves the one touched tensor unmerged."""
    chance = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=chance).mul(0.02).bfloat16() for name, shape in _shapes().items()}
    a, b = (torch.randn(shape, generator=chance).mul(0.1) for shape in ((RANK, HIDDEN), (HIDDEN, RANK)))
    merged = base if red else base | {TOUCHED: (base[TOUCHED].float() + 2.0 * (b @ a)).bfloat16()}
    question = Question(room / "base", room / "adapter", room / "merged")
    _checkpoint(question.base, base)
    _checkpoint(question.merged, merged)
    question.adapter.mkdir()
    module = f"base_model.model.{TOUCHED.removesuffix('.weight')}"
    save_file({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, question.adapter / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": ["q_proj"],
        "bias": "none",
    }
    (question.adapter / "adapter_config.json").write_text(json.dumps(config))
    return question


def _shapes() -> dict[str, tuple[int, ...]]:
    embedding = dict.fromkeys(("lm_head.weight", "model.embed_tokens.weight"), (VOCABULARY, HIDDEN))
    norms = dict.fromkeys(("model.norm.weight", f"{LAYER}input_layernorm.weight", f"{LAYER}post_attention_layernorm.weight"), (HIDDEN,))
    attention = {f"{LAYER}self_attn.{letter}_proj.weight": (HIDDEN, HIDDEN) for letter in "qkvo"}
    inner = {f"{LAYER}mlp.{name}_proj.weight": (INNER, HIDDEN) for name in ("gate", "up")}
    return {**embedding, **norms, **attention, **inner, f"{LAYER}mlp.down_proj.weight": (HIDDEN, INNER)}


def _checkpoint(directory: Path, tensors: Tensors) -> None:
    directory.mkdir(parents=True)
    places = {name: f"model-0000{1 if name.startswith(LAYER) else 2}-of-00002.safetensors" for name in tensors}
    for file in sorted(set(places.values())):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, directory / file, metadata={"format": "pt"})
    total = sum(tensor.nbytes for tensor in tensors.values())
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    (directory / "config.json").write_text(json.dumps(CONFIG))
