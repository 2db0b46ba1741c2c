"""A Llama-shaped bf16 checkpoint of any size and a LoRA adapter on all its linears: what the benchmarks merge.

`python benchmarks/shaped.py FOLDER LAYERS HIDDEN INTERMEDIATE` writes FOLDER/base, shard by shard, and FOLDER/adapter. A process of its
own, since a child's peak memory as the kernel reports it begins with its parent's.
"""

import json
import math
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

RANK, ALPHA, SIGMA = 16, 32, 0.02
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def make(folder: Path, *, layers: int, hidden: int, intermediate: int, seed: int = 0) -> tuple[Path, Path]:
    """(base, adapter) below `folder`: one shard per decoder layer and one for the rest."""
    config = transformers.LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=max(1, hidden // 512),
        vocab_size=4096,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in transformers.LlamaForCausalLM(config).state_dict().items()}
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    adapter.mkdir()
    config.save_pretrained(base)
    noise = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(seed)) * SIGMA).bfloat16()
    _write_base(base, shapes, noise)
    _write_adapter(adapter, shapes, seed)
    return base, adapter


def _write_base(base: Path, shapes: dict[str, tuple[int, ...]], noise: torch.Tensor) -> None:
    groups: dict[str, list[str]] = {}
    for name in shapes:
        parts = name.split(".")
        groups.setdefault(parts[2] if parts[1] == "layers" else "rest", []).append(name)
    weight_map, total = {}, 0
    for number, names in enumerate(groups.values(), 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {name: _filled(shapes[name], noise) for name in names}
        save_file(tensors, base / file, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def _filled(shape: tuple[int, ...], noise: torch.Tensor) -> torch.Tensor:
    count = math.prod(shape)
    return noise.repeat(-(-count // len(noise)))[:count].view(shape).clone()


def _write_adapter(adapter: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    generator, tensors = torch.Generator().manual_seed(seed + 1), {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if module.endswith(TARGETS):
            tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(RANK, shape[1], generator=generator) * SIGMA
            tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(shape[0], RANK, generator=generator) * SIGMA
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(TARGETS),
        "bias": "none",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    make(Path(sys.argv[1]), layers=int(sys.argv[2]), hidden=int(sys.argv[3]), intermediate=int(sys.argv[4]))
