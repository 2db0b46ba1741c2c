"""Adapters for the proxies: one really trained with PEFT, one as ColossalAI saves it."""

import functools
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers.utils import logging

from merge.errors import MergeError
from merge.proxies.quantised import twin

RANK, ALPHA = 8, 16
RATE = 4e-3  # Adam's; moves every module by well over MIN_RHO within a few steps
MIN_RHO = 1e-2  # ‖Δ‖/‖W‖ that every module must reach, so that no check is vacuous
BATCH, LENGTH = 4, 16
TARGETS = {
    "deepseek_v3": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "qwen3_5_moe": r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|in_proj_qkv|shared_expert\.(gate_proj|up_proj|down_proj))",
    "llama4": r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
}
PARAMETERS = {model: ["experts.gate_up_proj", "experts.down_proj"] for model in ("qwen3_5_moe", "llama4")}
MLP = ("gate_proj", "up_proj", "down_proj")


def make_adapter(base: Path, out: Path, *, style: str = "peft", steps: int = 6, seed: int = 0) -> Path:
    """Write one adapter for a proxy checkpoint and return its directory.

    style  "peft": trained for `steps` optimiser steps on random tokens and saved by PEFT; attention for DeepSeek-V3, every linear
           layer else. "colossalai": `adapter_model.bin` with a pair for every dense, shared and routed expert, by disk names; ColossalAI
           needs GPUs, so its factors are seeded noise and nothing is trained

    Raises MergeError if the style is unknown, `out` is not empty, or a module's delta stays below MIN_RHO.
    """
    if style not in ("peft", "colossalai"):
        raise MergeError(f"--style {style}: peft or colossalai was expected. Nothing was written.")
    if not (base / "config.json").is_file():
        raise MergeError(f"{base}: no config.json there; make one with `python -m merge proxy`. Nothing was written.")
    if out.exists() and any(out.iterdir()):
        raise MergeError(f"{out} is not empty. Nothing was written.")
    write = functools.partial(_train, steps=steps) if style == "peft" else _write_colossalai
    with _one_quiet_thread(), tempfile.TemporaryDirectory() as room:
        write(twin(base, Path(room) / base.name), out, seed=seed)
    for path in out.iterdir():
        path.chmod(0o644)
    return out


def _train(base: Path, out: Path, *, steps: int, seed: int) -> None:
    """A few real optimiser steps, saved by PEFT."""
    import peft

    torch.manual_seed(seed)
    architecture = json.loads((base / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, architecture).from_pretrained(base, dtype=torch.float32)
    kind = model.config.model_type
    targets, parameters = TARGETS.get(kind, "all-linear"), PARAMETERS.get(kind)
    settings = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, target_parameters=parameters, task_type="CAUSAL_LM")
    trained = peft.get_peft_model(model, settings)
    _steps(trained, steps, model.config.get_text_config().vocab_size)
    _refuse_faint(trained)
    config = trained.peft_config["default"]
    config.base_model_name_or_path = base.name  # no path of this machine in the file
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)  # PEFT keeps a set, whose order is another in every process
    trained.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink()  # PEFT's card lists its tags in the order of a set: other bytes every time


@contextmanager
def _one_quiet_thread() -> Iterator[None]:
    """One thread and a generator of its own, so that sums have one order; and silence: the load report of a proxy is known."""
    threads, verbosity, bar = torch.get_num_threads(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(threads)
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _steps(trained: Any, steps: int, vocabulary: int) -> None:
    optimiser = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], lr=RATE)
    for _ in range(steps):
        tokens = torch.randint(0, min(256, vocabulary), (BATCH, LENGTH))
        optimiser.zero_grad()
        trained(input_ids=tokens, labels=tokens).loss.backward()
        optimiser.step()


def _refuse_faint(trained: Any) -> None:
    """Raises MergeError unless every module's delta is large enough to be seen in bf16."""
    for name, module in trained.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "get_delta_weight"):
            weight = module.get_param() if hasattr(module, "get_param") else module.get_base_layer().weight
            rho = float(module.get_delta_weight("default").norm() / weight.norm())
            if rho < MIN_RHO:
                raise MergeError(f"{name}: ‖Δ‖/‖W‖ is {rho:.1e}, below {MIN_RHO:g}; train for more steps. Nothing was written.")


def _write_colossalai(base: Path, out: Path, *, seed: int) -> None:
    """gate, up and down of every dense MLP, shared and routed expert; never the MTP layer; bf16 factors of ‖Δ‖/‖W‖ = 0.1."""
    config = json.loads((base / "config.json").read_text())
    generator, tensors = torch.Generator().manual_seed(seed + 1), {}
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dictionary)
                module, parts = name.removesuffix(".weight"), name.split(".")
                if module.endswith(MLP) and parts[1] == "layers" and int(parts[2]) < config["num_hidden_layers"]:
                    weight = shard.get_tensor(name).float()
                    a = torch.randn(RANK, weight.shape[1], generator=generator)
                    b = torch.randn(weight.shape[0], RANK, generator=generator)
                    b *= 0.1 * weight.norm() / (ALPHA / RANK * (b @ a).norm())
                    tensors[f"base_model.model.{module}.lora_A.weight"] = a.bfloat16()
                    tensors[f"base_model.model.{module}.lora_B.weight"] = b.bfloat16()
    if not tensors:
        raise MergeError(f"{base}: no gate_proj, up_proj or down_proj there. Nothing was written.")
    out.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, out / "adapter_model.bin")
    (out / "adapter_config.json").write_text(json.dumps(_colossalai_config(base), indent=2) + "\n")


def _colossalai_config(base: Path) -> dict[str, Any]:
    return {
        "alpha_pattern": {},
        "base_model_name_or_path": base.name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": RANK,
        "rank_pattern": {},
        "target_modules": list(MLP),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
