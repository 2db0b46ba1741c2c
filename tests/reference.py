"""What a merge must give, written a second time: float64 W + s·B·A by the textbook, rounded once.

Shares nothing with merge or certify: it reads with safetensors, and takes each module's disk key from its caller. `marked_parameter` checks
such a key without any mapping: set the tensor to a constant, load with transformers, look which parameter became constant.
"""

import json
import math
import shutil
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

MARK = 0.3125  # exact in bf16, and no value that a random weight holds everywhere


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint's safetensors files."""
    found: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("model*.safetensors")):
        found |= load_file(shard)
    return found


def adapter_deltas(adapter: Path) -> dict[str, torch.Tensor]:
    """Module path → s·B·A in float64, (out, in): the textbook, for adapters with one rank and one alpha."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file) if file.exists() else torch.load(adapter / "adapter_model.bin", weights_only=True)
    scaling = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    found = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            b = tensors[name.replace("lora_A", "lora_B")]
            found[name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")] = scaling * (b.double() @ a.double())
    return found


def marked_parameter(base: Path, key: str, room: Path) -> str:
    """The in-memory parameter that one disk tensor fills: mark it, load, look."""
    marked = shutil.copytree(base, room / "marked")
    try:
        for shard in marked.glob("model*.safetensors"):
            tensors = load_file(shard)
            if key in tensors:
                tensors[key] = torch.full_like(tensors[key], MARK)
                save_file(tensors, shard, metadata={"format": "pt"})
        model = transformers.AutoModelForCausalLM.from_pretrained(marked, dtype=torch.float32)
        return next(name for name, value in model.named_parameters() if bool((value == MARK).all()))
    finally:
        shutil.rmtree(marked)


def merged(base: Path, adapter: Path, keys: dict[str, str], *, transposed: bool = False) -> dict[str, torch.Tensor]:
    """The expected checkpoint: one rounding of the float64 sum for the adapted tensors, the base's own for the others.

    keys  module path → disk key      transposed  weights are stored (in, out)
    """
    found = weights(base)
    for module, delta in adapter_deltas(adapter).items():
        weight = found[keys[module]]
        found[keys[module]] = (weight.double() + (delta.T if transposed else delta)).to(weight.dtype)
    return found


def saved_like(base: Path, tensors: dict[str, torch.Tensor], out: Path) -> Path:
    """A checkpoint with these tensors in one file beside the base's side files."""
    out.mkdir()
    for path in base.iterdir():
        if "safetensors" not in path.name:
            shutil.copyfile(path, out / path.name)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


def logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    """Float32 logits of a checkpoint on fixed tokens; with an adapter, base + unmerged adapter through PEFT."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model(input_ids=tokens).logits


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative: ‖a − b‖ / ‖b‖."""
    return float((a - b).norm() / b.norm())
