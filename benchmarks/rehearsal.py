"""Rehearsals against reality: `python -m benchmarks.rehearsal [--room DIR] [--giant]`."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from merge.catalog import compose
from merge.proxies import families
from merge.proxies.families import Spec

LAYERS, SHARDS, RANK, BLOCK = 61, 163, 8, 128
DIMS = {
    **{"hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": LAYERS},
    **{"first_k_dense_replace": 3, "n_routed_experts": 256, "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8},
    **{"num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128},
    **{"qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280, "max_position_embeddings": 163840, "bos_token_id": 0, "eos_token_id": 1},
}
QUANTISED = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
EXPERTS = ("gate_proj", "up_proj", "down_proj")


def giant(room: Path, targets: tuple[str, ...] = EXPERTS) -> tuple[Path, Path]:
    """DeepSeek-V3 as it was published, 91,991 tensors and 688 GB, and an adapter for it; headers are real, numbers are holes."""
    config = {**families.DEEPSEEK, **DIMS, "quantization_config": QUANTISED}
    tensors = [spec for plain in families._deepseek_tensors(config) for spec in _stored(plain)]
    base, adapter = room / "base", room / "adapter"
    weight_map, total = {}, 0
    base.mkdir(parents=True)
    adapter.mkdir()
    for number in range(SHARDS):
        file, held = f"model-{number + 1:05d}-of-{SHARDS:06d}.safetensors", tensors[number * len(tensors) // SHARDS : (number + 1) * len(tensors) // SHARDS]
        total += _sparse(base / file, held)
        weight_map |= {name: file for name, _, _ in held}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))
    (base / "config.json").write_text(json.dumps(config))
    pairs = [pair for name, _, shape in tensors for pair in _pair(name, shape, targets)]
    _sparse(adapter / "adapter_model.safetensors", pairs)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": list(targets), "task_type": "CAUSAL_LM", "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    return base, adapter


def _stored(spec: Spec) -> Iterator[Spec]:
    """One tensor of the model as the files hold it: every projection in 8 bits, with its scales beside it."""
    name, _, shape = spec
    if "proj" in name and "eh_proj" not in name:
        yield name, "F8_E4M3", shape
        yield f"{name}_scale_inv", "F32", (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK))
    else:
        yield spec


def _pair(name: str, shape: tuple[int, ...], targets: tuple[str, ...]) -> Iterator[Spec]:
    module = name.removesuffix(".weight")
    if module != name and module.endswith(targets) and int(name.split(".")[2]) < LAYERS:
        yield f"base_model.model.{module}.lora_A.weight", "BF16", (RANK, shape[1])
        yield f"base_model.model.{module}.lora_B.weight", "BF16", (shape[0], RANK)


def _sparse(path: Path, specs: list[Spec]) -> int:
    catalog = compose(path.name, specs, {"format": "pt"})
    with path.open("wb") as stream:
        stream.write(catalog.header)
        stream.truncate(catalog.size)
    return sum(tensor.size for tensor in catalog.tensors)
