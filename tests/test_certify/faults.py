"""Planted faults: each spoils a sound merge through files on disk, and names the check that must catch it on its own."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.test_certify.cases import INDEX, Case, edit, read, single, write

DENSE = "model.layers.0.mlp.gate_proj.weight"
EXPERT = "model.layers.1.mlp.experts.{}.up_proj.weight"
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


@dataclass(frozen=True)
class Fault:
    """plant(case) spoils the copies of one case; `caught_by` are the checks that must each catch it alone."""

    case: str
    caught_by: tuple[str, ...]
    plant: Callable[[Case], None]


FAULTS: dict[str, Fault] = {}


def fault(case: str, *codes: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Registers a fault under its function's name."""

    def register(plant: Callable[[Case], None]) -> Callable[[Case], None]:
        FAULTS[plant.__name__] = Fault(case, codes, plant)
        return plant

    return register


def base_tensor(case: Case, key: str) -> Tensor:
    return next(tensors[key] for tensors in read(case.base).values() if key in tensors)


def replace(directory: Path, key: str, new: Callable[[Tensor], Tensor]) -> None:
    edit(directory, lambda name, tensor: new(tensor).contiguous() if name == key else tensor)


def remerge(case: Case, key: str, factor: float) -> Tensor:
    A, B, s, flipped = case.deltas[key]
    W = base_tensor(case, key)
    return single(W.T, A, B, s * factor).T if flipped else single(W, A, B, s * factor)


@fault("deepseek", "C2")
def mtp_layer_dropped(case: Case) -> None:
    edit(case.merged, lambda key, tensor: None if "layers.3." in key else tensor)


@fault("deepseek", "C2")
def expert_dropped(case: Case) -> None:
    edit(case.merged, lambda key, tensor: None if ".experts.2." in key else tensor)


@fault("deepseek", "C4")
def module_unmerged(case: Case) -> None:
    replace(case.merged, DENSE, lambda _: base_tensor(case, DENSE))


@fault("deepseek", "C4")
def delta_twice(case: Case) -> None:
    replace(case.merged, DENSE, lambda _: remerge(case, DENSE, 2.0))


@fault("llama-rslora", "C4")
def plain_scaling_for_rslora(case: Case) -> None:
    root = math.sqrt(4)  # α/r where α/√r was asked for
    edit(case.merged, lambda key, tensor: remerge(case, key, 1 / root) if key in case.deltas else tensor)


@fault("gpt2", "C4")
def delta_transposed_on_a_square_matrix(case: Case) -> None:
    key = "transformer.h.0.attn.c_proj.weight"
    A, B, s, _ = case.deltas[key]
    replace(case.merged, key, lambda _: single(base_tensor(case, key), A, B, s))


@fault("deepseek", "C4")
def two_experts_swapped(case: Case) -> None:
    one, other = EXPERT.format(0), EXPERT.format(1)
    held = {key: tensor for tensors in read(case.merged).values() for key, tensor in tensors.items()}
    swapped = {one: held[other], other: held[one]}
    edit(case.merged, lambda key, tensor: swapped.get(key, tensor).clone())


@fault("llama", "C4")
def one_element_not_a_number(case: Case) -> None:
    key = "model.layers.0.self_attn.q_proj.weight"

    def spoil(tensor: Tensor) -> Tensor:
        tensor[3, 5] = torch.nan
        return tensor

    replace(case.merged, key, spoil)


@fault("llama", "C4")
def replaced_module_left_as_in_the_base(case: Case) -> None:
    replace(case.merged, "lm_head.weight", lambda _: base_tensor(case, "lm_head.weight"))


@fault("deepseek", "C3")
def one_bit_flipped_in_an_untouched_tensor(case: Case) -> None:
    def flip(tensor: Tensor) -> Tensor:
        tensor.view(torch.int16)[0, 0] ^= 1
        return tensor

    replace(case.merged, "model.layers.3.eh_proj.weight", flip)


@fault("llama", "C1")
def shard_truncated(case: Case) -> None:
    path = sorted(case.merged.glob("model*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-100])


@fault("llama", "C1")
def index_names_a_wrong_shard(case: Case) -> None:
    index = json.loads((case.merged / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    key = next(key for key, file in index["weight_map"].items() if file == files[0])
    index["weight_map"][key] = files[1]
    (case.merged / INDEX).write_text(json.dumps(index))


@fault("llama", "C1")
def tensor_in_two_shards(case: Case) -> None:
    first, second = sorted(case.merged.glob("model*.safetensors"))[:2]
    key, tensor = next(iter(load_file(first).items()))
    save_file(load_file(second) | {key: tensor}, second)


@fault("llama", "C1")
def index_names_a_missing_file(case: Case) -> None:
    sorted(case.merged.glob("model*.safetensors"))[-1].unlink()


@fault("llama", "C1")
def stray_consolidated_file(case: Case) -> None:
    save_file({"x": torch.zeros(2)}, case.merged / "consolidated.safetensors")


@fault("llama", "C1")
def total_size_is_wrong(case: Case) -> None:
    index = json.loads((case.merged / INDEX).read_text())
    index["metadata"]["total_size"] += 2
    (case.merged / INDEX).write_text(json.dumps(index))


@fault("llama", "C2")
def dtype_drift(case: Case) -> None:
    edit(case.merged, lambda _, tensor: tensor.half())


@fault("deepseek", "C2")
def router_bias_downcast(case: Case) -> None:
    replace(case.merged, BIAS, lambda tensor: tensor.bfloat16())


@fault("llama", "C2")
def tensor_renamed(case: Case) -> None:
    shards = {
        name: {key.replace("layers.1.mlp.up", "blocks.1.mlp.up"): tensor for key, tensor in tensors.items()}
        for name, tensors in read(case.merged).items()
    }
    write(case.merged, shards)


@fault("llama", "C4")
def adapter_tensor_nobody_consumed(case: Case) -> None:
    path = case.adapter / "adapter_model.safetensors"
    stem = "base_model.model.model.layers.0.self_attn.q_prj.lora_"
    save_file(load_file(path) | {f"{stem}A.weight": torch.ones(4, 32), f"{stem}B.weight": torch.ones(32, 4)}, path)


@fault("llama", "C4")
def adapter_lacks_a_module_that_it_targets(case: Case) -> None:
    path = case.adapter / "adapter_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(path).items() if "layers.1.self_attn.q_proj" not in key}, path)
    key = "model.layers.1.self_attn.q_proj.weight"
    replace(case.merged, key, lambda _: base_tensor(case, key))


@fault("llama", "C4")
def adapter_lacks_a_module_that_it_saves(case: Case) -> None:
    path = case.adapter / "adapter_model.safetensors"
    save_file({key: tensor for key, tensor in load_file(path).items() if "lm_head" not in key}, path)
    replace(case.merged, "lm_head.weight", lambda _: base_tensor(case, "lm_head.weight"))


@fault("deepseek", "C4")
def adapter_lacks_one_expert(case: Case) -> None:
    path = case.adapter / "adapter_model.bin"
    tensors = torch.load(path, weights_only=True)
    torch.save({key: tensor for key, tensor in tensors.items() if "layers.1.mlp.experts.0.up_proj" not in key}, path)
    replace(case.merged, EXPERT.format(0), lambda _: base_tensor(case, EXPERT.format(0)))


@fault("llama", "C1", "C4")
def merge_only_in_a_stray_file(case: Case) -> None:
    held = {key: tensor for tensors in read(case.merged).values() for key, tensor in tensors.items()}
    write(case.merged, read(case.base))
    save_file(held, case.merged / "consolidated.safetensors")


@fault("llama", "C8")
def fine_tune_below_the_grid(case: Case) -> None:
    """Every rounding is right, and nearly everything is rounded away."""
    path = case.adapter / "adapter_model.safetensors"
    save_file({key: tensor * 1e-4 if "lora_B" in key else tensor for key, tensor in load_file(path).items()}, path)
    edit(case.merged, lambda key, tensor: remerge(case, key, 1e-4) if key in case.deltas else tensor)


@fault("llama", "C7")
def tie_flag_flipped(case: Case) -> None:
    path = case.merged / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))


@fault("deepseek", "C2", "C7")
def mtp_announced_but_gone(case: Case) -> None:
    edit(case.merged, lambda key, tensor: None if "layers.3." in key else tensor)
