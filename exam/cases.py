"""Tiny real checkpoints, real adapters and sound merges of them, for the gate's exam. Nothing here uses the engine."""

import json
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"
Merge = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # (W, A, B, s), all as the module sees them: W (out, in)


@dataclass
class Case:
    """A base, an adapter and what the adapter must do, worked out by hand.

    deltas  disk key → (A, B, scaling, stored (in, out))      replaced  disk key → tensor
    """

    base: Path
    adapter: Path
    merged: Path
    deltas: dict[str, tuple[Tensor, Tensor, float, bool]] = field(default_factory=dict)
    replaced: dict[str, Tensor] = field(default_factory=dict)


def read(directory: Path) -> dict[str, dict[str, Tensor]]:
    """File → tensors."""
    return {path.name: load_file(path) for path in sorted(directory.glob("model*.safetensors"))}


def write(directory: Path, shards: dict[str, dict[str, Tensor]]) -> None:
    """Writes the shards and an index that agrees with them."""
    for path in directory.glob("model*.safetensors"):
        path.unlink()
    for name, tensors in shards.items():
        save_file(tensors, directory / name, metadata={"format": "pt"})
    if list(shards) != ["model.safetensors"]:
        weight_map = {key: name for name, tensors in shards.items() for key in tensors}
        total = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors.values())
        (directory / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}))


def edit(directory: Path, change: Callable[[str, Tensor], Tensor | None]) -> None:
    """Rewrites every tensor; None drops it."""
    shards = {
        name: {key: new for key, tensor in tensors.items() if (new := change(key, tensor)) is not None}
        for name, tensors in read(directory).items()
    }
    write(directory, {name: tensors for name, tensors in shards.items() if tensors})


def double(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    return (W.double() + s * (B.double() @ A.double())).to(W.dtype)


def single(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    return (W.float() + (B.float() @ A.float()) * s).to(W.dtype)


def rank_chunks(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """float32, one rank after another added to W itself, the scaling inside."""
    out = W.float()
    for k in range(A.shape[0]):
        out = out + torch.outer(B[:, k].float() * s, A[k].float())
    return out.to(W.dtype)


def safe(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """PEFT's safe_merge: Δ rounded before it is added."""
    return W + ((B.float() @ A.float()) * s).to(W.dtype)


def merge_into(case: Case, out: Path, how: Merge = single) -> None:
    """A merged checkpoint beside the base, tensor by tensor."""
    shutil.copytree(case.base, out)

    def change(key: str, W: Tensor) -> Tensor:
        if key in case.replaced:
            return case.replaced[key].to(W.dtype)
        if key not in case.deltas:
            return W
        A, B, s, flipped = case.deltas[key]
        return how(W.T, A, B, s).T.contiguous() if flipped else how(W, A, B, s)

    edit(out, change)


def model_of(family: str, **sizes: int) -> Any:
    """A tiny model of a family, random bf16 weights; sizes: fields of its configuration."""
    import transformers as t

    torch.manual_seed(7)
    small = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48} | sizes
    match family:
        case "llama":
            config: Any = t.LlamaConfig(**small, num_key_value_heads=2, architectures=["LlamaForCausalLM"])
        case "qwen2":
            config = t.Qwen2Config(**small, num_key_value_heads=2, tie_word_embeddings=True, architectures=["Qwen2ForCausalLM"])
        case "gpt2":
            end = {"bos_token_id": 95, "eos_token_id": 95}
            config = t.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=32, architectures=["GPT2LMHeadModel"], **end)
        case "mixtral":
            config = t.MixtralConfig(**small, num_key_value_heads=2, num_local_experts=4, architectures=["MixtralForCausalLM"])
        case _:
            config = t.DeepseekV3Config(**{
                **small, "num_hidden_layers": 3, "num_key_value_heads": 4, "moe_intermediate_size": 16, "n_routed_experts": 4,
                "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
                "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
                "num_nextn_predict_layers": 1, **sizes,
            }, architectures=["DeepseekV3ForCausalLM"])  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(t, config.architectures[0])(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.05)
    return model


def make_base(family: str, directory: Path, **sizes: int) -> Any:
    """save_pretrained in several shards; DeepSeek gets its F32 router bias and its MTP layer, which transformers would not save."""
    model = model_of(family, **sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory, max_shard_size="20KB")
    if family == "deepseek":
        edit(directory, lambda key, tensor: tensor.float() if key.endswith("e_score_correction_bias") else tensor)
        shards = read(directory)
        whole = {key: tensor for tensors in shards.values() for key, tensor in tensors.items()}
        mtp = {key.replace("layers.2.", "layers.3."): tensor.clone() for key, tensor in whole.items() if "layers.2." in key}
        mtp["model.layers.3.eh_proj.weight"] = torch.randn(32, 64).bfloat16()
        write(directory, shards | {"model-mtp.safetensors": mtp})
    return model


def peft_adapter(model: Any, directory: Path, **options: Any) -> Any:
    """A LoRA made and saved by PEFT, B randomised so that it does something."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**{"r": 4, "lora_alpha": 16, "task_type": "CAUSAL_LM"} | options))
        torch.manual_seed(11)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
                elif "modules_to_save" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.01)
        wrapped.save_pretrained(directory)
    return wrapped


def expected_deltas(case: Case, *, conv: bool = False) -> None:
    """Fills `deltas` and `replaced` for an adapter whose names are the disk's; rank and alpha from its configuration."""
    config = json.loads((case.adapter / "adapter_config.json").read_text())
    safetensors = case.adapter / "adapter_model.safetensors"
    tensors = load_file(safetensors) if safetensors.exists() else torch.load(case.adapter / "adapter_model.bin", weights_only=True)
    for name, A in tensors.items():
        path = name.removeprefix("base_model.model.")
        if name.endswith(".lora_A.weight"):
            r = A.shape[0]
            alpha = next((a for key, a in config["alpha_pattern"].items() if f".{key}." in path), config["lora_alpha"])
            scaling = alpha / math.sqrt(r) if config["use_rslora"] else alpha / r
            key = path.replace(".lora_A.weight", ".weight")
            case.deltas[key] = (A, tensors[name.replace("lora_A", "lora_B")], scaling, conv)
        elif ".lora_" not in name:
            case.replaced[path] = A


def colossal_adapter(base: Path, directory: Path, targets: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")) -> None:
    """As ColossalAI writes it: adapter_model.bin, disk names, every dense, shared and routed expert, never the MTP layer."""
    import peft

    directory.mkdir()
    torch.manual_seed(5)
    tensors = {}
    for key, W in sorted((key, tensor) for shard in read(base).values() for key, tensor in shard.items()):
        if key.endswith(tuple(f".{target}.weight" for target in targets)) and "layers.3." not in key:
            path = f"base_model.model.{key.removesuffix('.weight')}"
            tensors[f"{path}.lora_A.weight"] = (torch.randn(4, W.shape[1]) * 0.1).bfloat16()
            tensors[f"{path}.lora_B.weight"] = (torch.randn(W.shape[0], 4) * 0.1).bfloat16()
    torch.save(tensors, directory / "adapter_model.bin")
    peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM").save_pretrained(directory)


def build(name: str, root: Path) -> Case:
    """One case by name: base and adapter made, and merged once, soundly, in float32."""
    case = Case(root / "base", root / "adapter", root / "merged")
    family, _, variant = name.partition("-")
    model = make_base(family, case.base)
    match family, variant:
        case "llama", "rslora":
            peft_adapter(model, case.adapter, target_modules=["q_proj", "up_proj"], use_rslora=True)
        case "llama", _:
            peft_adapter(
                model, case.adapter, target_modules=["q_proj", "k_proj", "down_proj", "o_proj"],
                modules_to_save=["lm_head", "input_layernorm"],
                rank_pattern={"k_proj": 2}, alpha_pattern={"down_proj": 4},
            )  # fmt: skip
        case "qwen2", _:
            peft_adapter(model, case.adapter, target_modules=["q_proj", "v_proj", "gate_proj"])
        case "gpt2", _:
            peft_adapter(model, case.adapter, target_modules=["c_proj", "c_attn"], fan_in_fan_out=True)
        case "mixtral", _:
            colossal_adapter(case.base, case.adapter, ("q_proj", "w1", "w3"))
        case _, "attention":
            peft_adapter(model, case.adapter, target_modules=["q_a_proj", "kv_b_proj", "o_proj"])
        case _:
            colossal_adapter(case.base, case.adapter)
    expected_deltas(case, conv=family == "gpt2")
    merge_into(case, case.merged)
    return case


def copied(case: Case, root: Path) -> Case:
    """The same case with its own copies of adapter and merged directory, to be spoiled."""
    spoiled = Case(case.base, root / "adapter", root / "merged", case.deltas, case.replaced)
    shutil.copytree(case.adapter, spoiled.adapter)
    shutil.copytree(case.merged, spoiled.merged)
    return spoiled


def keys(directory: Path) -> Iterator[str]:
    for tensors in read(directory).values():
        yield from tensors


class Shelf:
    """Cases, each built once."""

    def __init__(self, root: Path) -> None:
        self.root, self.built = root, dict[str, Case]()

    def __getitem__(self, name: str) -> Case:
        if name not in self.built:
            self.built[name] = build(name, self.root / name)
        return self.built[name]
