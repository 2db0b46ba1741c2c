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
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from safetensors.torch import load_file, save_file
from transformers.pytorch_utils import Conv1D

UNIT = 2.0**-24  # unit roundoff of float32
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
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).float()  # what is plain in an fp8 one stays bf16
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    tokens = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model(input_ids=tokens).logits


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative: ‖a − b‖ / ‖b‖."""
    return float((a - b).norm() / b.norm())


def trained(live: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(every parameter of base + adapter in float64, how far a float32 merge may lie from each) of a live, unmerged PEFT model.

    The formulas are written out here, for every kind of layer; names are those of the module tree that the model has without PEFT.
    Bound: (rank + 3) · u · |scaling| · |B| |A| + 2 · u · |W|, u = 2⁻²⁴ the unit roundoff of float32 (Higham 2002, §3.1).
    """
    inner = live.base_model.model
    values: dict[str, torch.Tensor] = {}
    for key, value in inner.state_dict().items():
        if ".original_module." not in key and "lora_" not in key and "trainable_tokens" not in key:
            values[bare(key)] = value.double()
    slack = {name: 2 * UNIT * value.abs() for name, value in values.items()}
    for path, module in inner.named_modules():
        if isinstance(module, LoraLayer) and "default" in (*module.lora_A, *module.lora_embedding_A):
            _add_layer(bare(path), module, values, slack)
    for path, module in inner.named_modules():
        if isinstance(module, TrainableTokensLayer):
            values[f"{bare(path)}.weight"][module.token_indices["default"]] = module.trainable_tokens_delta["default"].double()
    for tied, source in inner.all_tied_weights_keys.items():
        if any(isinstance(module, TrainableTokensLayer) for module in inner.modules()):
            values[tied] = values[source]
    return values, slack


def bare(path: str) -> str:
    """A path of PEFT's module tree without PEFT's own steps."""
    return ".".join(step for step in path.split(".") if step not in ("base_layer", "modules_to_save", "default", "token_adapter"))


def _add_layer(path: str, module: LoraLayer, values: dict[str, torch.Tensor], slack: dict[str, torch.Tensor]) -> None:
    base, s = module.get_base_layer(), module.scaling["default"]
    embedding = isinstance(base, torch.nn.Embedding)
    factors = (module.lora_embedding_A, module.lora_embedding_B) if embedding else (module.lora_A, module.lora_B)
    a, b = ((f["default"] if embedding else f["default"].weight).detach().double() for f in factors)
    if isinstance(module, ParamWrapper):
        name = f"{path}.{module.parameter_name}"
        delta, size = _experts(a, b, s, values[name].shape, swapped=module._did_swap_in_out_features)
    else:
        name = f"{path}.in_proj_weight" if isinstance(base, torch.nn.MultiheadAttention) else f"{path}.weight"
        s = 2 * s if path.endswith(".attention.out_proj") else s  # PEFT adds this one twice
        delta, size = s * (b.flatten(1) @ a.flatten(1)), abs(s) * (b.flatten(1).abs() @ a.flatten(1).abs())
        if embedding or isinstance(base, Conv1D):
            delta, size = delta.T, size.T
    values[name] = values[name] + delta.reshape(values[name].shape)
    slack[name] = slack[name] + (len(a) + 3) * UNIT * size.reshape(values[name].shape)
    if module.use_dora.get("default"):
        axes = [0] if embedding or isinstance(base, Conv1D) else list(range(1, values[name].dim()))
        length = values[name].pow(2).sum(axes, keepdim=True).sqrt()
        factor = module.lora_magnitude_vector["default"].weight.detach().double().reshape(length.shape) / length
        values[name], slack[name] = values[name] * factor, 2 * (slack[name] * factor.abs() + 4 * UNIT * (values[name] * factor).abs())
    if module.lora_bias.get("default"):
        added = s * module.lora_B["default"].bias.detach().double()
        values[f"{path}.bias"] = values[f"{path}.bias"] + added
        slack[f"{path}.bias"] = slack[f"{path}.bias"] + 2 * UNIT * added.abs()


def _experts(a: torch.Tensor, b: torch.Tensor, s: float, shape: torch.Size, *, swapped: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """One product per expert: A holds expert after expert, B rank after rank."""
    if len(shape) == 2:
        return s * (b @ a), abs(s) * (b.abs() @ a.abs())
    experts = shape[0]
    a, b = a.reshape(experts, -1, a.shape[-1]), b.reshape(len(b), -1, experts).permute(2, 0, 1)
    delta, size = s * (b @ a), abs(s) * (b.abs() @ a.abs())
    return (delta, size) if swapped else (delta.mT, size.mT)
