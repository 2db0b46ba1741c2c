"""`python -m tests.matrix.giant`: DeepSeek-V3's whole inventory of names, 46,183 tensors, under an adapter of 89,454; shapes are tiny.

Files are sparse: headers are real, numbers are holes. Planning reads headers only; limits are 20 s and 1.5 GiB.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import merge
from merge.catalog import compose
from merge.proxies import families

LAYERS, EXPERTS, RANK, SHARDS = 61, 256, 4, 40
MOST_SECONDS, MOST_GIB = 20.0, 1.5
Spec = tuple[str, str, tuple[int, ...]]


def main() -> int:
    """Exit code 1 where planning takes too long or too much."""
    config = {**families.DEEPSEEK, **families.DEEP, "num_hidden_layers": LAYERS, "n_routed_experts": EXPERTS, "n_group": 8, "topk_group": 4}
    tensors = list(families._deepseek_tensors(config))
    with tempfile.TemporaryDirectory() as room:
        base, adapter = Path(room) / "base", Path(room) / "adapter"
        base.mkdir()
        adapter.mkdir()
        weight_map = {}
        for number in range(SHARDS):
            held = tensors[number * len(tensors) // SHARDS : (number + 1) * len(tensors) // SHARDS]
            _sparse(base / f"model-{number + 1:05d}-of-{SHARDS:06d}.safetensors", held)
            weight_map |= {name: f"model-{number + 1:05d}-of-{SHARDS:06d}.safetensors" for name, _, _ in held}
        (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        (base / "config.json").write_text(json.dumps(config))
        pairs = list(_pairs(tensors))
        _sparse(adapter / "adapter_model.safetensors", pairs)
        targets = ["gate_proj", "up_proj", "down_proj"]
        (adapter / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM"})
        )
        began = time.monotonic()
        made = merge.plan(base, adapter, Path(room) / "out")
        seconds, gib = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sys.stdout.write(
        f"{len(tensors):,} tensors, {len(pairs):,} adapter tensors: {made.counts}, {seconds:.1f} s, {gib:.2f} GiB at the peak\n"
    )
    return int(seconds > MOST_SECONDS or gib > MOST_GIB or made.counts["merged"] != len(pairs) // 2)


def _pairs(tensors: list[Spec]) -> list[Spec]:
    """A pair for every dense, shared and routed expert, the MTP layer's aside."""
    found: list[Spec] = []
    for name, _, shape in tensors:
        module = name.removesuffix(".weight")
        if module.endswith(("gate_proj", "up_proj", "down_proj")) and int(name.split(".")[2]) < LAYERS:
            found.append((f"base_model.model.{module}.lora_A.weight", "BF16", (RANK, shape[1])))
            found.append((f"base_model.model.{module}.lora_B.weight", "BF16", (shape[0], RANK)))
    return found


def _sparse(path: Path, specs: list[Spec]) -> None:
    catalog = compose(path.name, specs, {"format": "pt"})
    with path.open("wb") as stream:
        stream.write(catalog.header)
        stream.truncate(catalog.size)


if __name__ == "__main__":
    sys.exit(main())
