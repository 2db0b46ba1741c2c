"""How much of a fine-tune's effect on a trained model survives storage as fp8, rule by rule.

`python -m benchmarks.effect [--seeds 5] [--json FILE]`. Per seed: a small Llama learns the bytes of the standard library's Python source;
its linear layers are stored as e4m3 in blocks of 128 × 128; LoRAs learn the prose of Python's manual (pydoc_data.topics) until
ρ = ‖Δ‖ / ‖W‖ has reached each of three strengths. The engine merges real files; two rivals are computed beside it.

    effect kept = (loss of the base − loss merged) / (loss of the base − loss of base + adapter), on prose held out

Thirteen minutes on two cores. Exits with 1 where a target is missed.
"""

import argparse
import json
import statistics
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from pydoc_data import topics

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import merge
from benchmarks import rivals
from merge.proxies.quantised import BLOCKS, QUANTISERS, twin

BLOCK = 128
LENGTH, BATCH, STEPS, RATE = 128, 16, 600, 2e-3  # of training the base
RANK, ALPHA, TUNE_RATE, MOST = 8, 16, 5e-3, 400  # of a LoRA: Adam's step is TUNE_RATE · ρ, so that each takes about as many
HELD_OUT = 64  # sequences
STRENGTHS = (1e-2, 3e-3, 1e-3)
MEDIAN = dict(zip(STRENGTHS, (0.97, 0.97, 0.93), strict=True))  # that faithful keeps at least
WORST = 0.9
NEAREST = dict(zip(STRENGTHS, (0.35, 0.12, 0.04), strict=True))  # that nearest keeps at most: else the fine-tune is no test
MERGES = {
    "nearest": {"output_dtype": "same", "rounding": "nearest"},
    "faithful": {"output_dtype": "same", "rounding": "faithful"},
    "stochastic": {"output_dtype": "same", "rounding": "stochastic"},
    "bf16": {"output_dtype": "bf16"},
}
RULES = (*MERGES, "feedback", "scale search")
CONFIG = transformers.LlamaConfig(
    **{"vocab_size": 256, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"num_key_value_heads": 4, "max_position_embeddings": LENGTH, "bos_token_id": None, "eos_token_id": None},
)
Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Texts:
    """Bytes as tokens: what the base learns, what a LoRA learns, and what it is judged by."""

    source: torch.Tensor
    prose: torch.Tensor
    held_out: torch.Tensor

    @classmethod
    def of_python(cls) -> "Texts":
        """From this interpreter's own standard library."""
        modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        source, prose = (_tokens(text) for text in (b"".join(map(Path.read_bytes, modules)), "\n".join(topics.topics.values()).encode()))
        return cls(source, prose[: -HELD_OUT * LENGTH], prose[-HELD_OUT * LENGTH :].view(HELD_OUT, LENGTH))


def _tokens(text: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def batches(text: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
    """Pieces from anywhere in a text, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - LENGTH, (BATCH,), generator=generator)
        yield torch.stack([text[start : start + LENGTH] for start in starts])


def trained_base(texts: Texts, seed: int, folder: Path) -> None:
    """A checkpoint with fp8 linear layers, as DeepSeek's are stored."""
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(CONFIG)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=STEPS)
    for _, batch in zip(range(STEPS), batches(texts.source, seed), strict=False):
        optimiser.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        schedule.step()
    stored: Weights = {}
    for name, value in model.state_dict().items():
        if name.endswith("_proj.weight"):
            stored[name], stored[f"{name}_scale_inv"] = QUANTISERS["fp8"].of(value)
        else:
            stored[name] = value.bfloat16()
    folder.mkdir()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = {**CONFIG.to_dict(), "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "quantization_config": BLOCKS}
    (folder / "config.json").write_text(json.dumps(config))


def decoded(checkpoint: Path) -> Weights:
    """What a folder holds, in float32, its codes times their scales."""
    with tempfile.TemporaryDirectory() as room:
        folder = twin(checkpoint, Path(room) / "twin")
        return {name: value.float() for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


@torch.no_grad()
def loss(model: torch.nn.Module, texts: Texts) -> float:
    """Mean cross entropy of the prose held out, in nats per byte."""
    return float(model(input_ids=texts.held_out, labels=texts.held_out).loss)


def loss_of(weights: Weights, texts: Texts) -> float:
    """The same of a model with these weights."""
    model = transformers.LlamaForCausalLM(CONFIG)
    model.load_state_dict(weights)
    return loss(model, texts)


def deltas(model: PeftModel) -> Weights:
    """Δ of every adapted weight, by its name in the checkpoint."""
    return {
        f"{name.removeprefix('base_model.model.')}.weight": module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


def strength(changes: Weights, base: Weights) -> float:
    """ρ = ‖Δ‖ / ‖W‖ over all adapted weights."""
    moved, whole = (sum(float(value.square().sum()) for value in values) for values in (changes.values(), [base[name] for name in changes]))
    return (moved / whole) ** 0.5


def tuned(base: Weights, texts: Texts, seed: int, wanted: float) -> PeftModel:
    """A LoRA on every linear layer, trained on prose until ρ has reached what is wanted."""
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(CONFIG)
    model.load_state_dict(base)
    adapted = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimiser = torch.optim.Adam((p for p in adapted.parameters() if p.requires_grad), lr=TUNE_RATE * wanted)
    for _, batch in zip(range(MOST), batches(texts.prose, seed), strict=False):
        optimiser.zero_grad()
        adapted(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        if strength(deltas(adapted), base) >= wanted:
            return adapted
    raise SystemExit(f"ρ = {wanted} was not reached in {MOST} steps")


def rivalling(base: Weights, model: PeftModel, folder: Path) -> Iterator[tuple[str, Weights]]:
    """What the rivals would store, decoded."""
    held, changes = load_file(folder / "model.safetensors"), deltas(model)
    directions = {f"{n.removeprefix('base_model.model.')}.weight": m.lora_A["default"].weight.detach()
                  for n, m in model.named_modules() if hasattr(m, "lora_A")}  # fmt: skip
    fed, searched = dict(base), dict(base)
    for name, delta in changes.items():
        scales, wanted = held[f"{name}_scale_inv"], base[name] + delta
        fed[name] = rivals.feedback(wanted, scales, BLOCK, directions[name])
        searched[name] = rivals.scale_search(wanted, base[name], delta, scales, BLOCK)
    yield from (("feedback", fed), ("scale search", searched))


def cell(folder: Path, base: Weights, texts: Texts, seed: int, wanted: float, room: Path) -> dict[str, float]:
    """One fine-tune, stored by every rule: its losses, ρ, and the share of its effect that each keeps."""
    model = tuned(base, texts, seed, wanted)
    before, after = loss_of(base, texts), loss(model, texts)
    found = {"rho": strength(deltas(model), base), "base": before, "tuned": after}
    model.save_pretrained(room / "adapter")
    stored = dict(rivalling(base, model, folder))
    for rule, options in MERGES.items():
        merge.merge(folder, room / "adapter", room / rule, seed=seed, workers=1, **options)  # type: ignore[arg-type]
        stored[rule] = decoded(room / rule)
    return found | {rule: (before - loss_of(stored[rule], texts)) / (before - after) for rule in RULES}


def one_seed(seed: int) -> dict[float, dict[str, float]]:
    """Every cell of one base, by one thread."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # peft still asks transformers by an old name
    transformers.utils.logging.set_verbosity_error()
    texts, found = Texts.of_python(), {}
    with tempfile.TemporaryDirectory(prefix="mergegate-effect-") as folder:
        trained_base(texts, seed, Path(folder) / "base")
        base = decoded(Path(folder) / "base")
        for wanted in STRENGTHS:
            room = Path(folder) / f"{wanted:g}"
            room.mkdir()
            found[wanted] = cell(Path(folder) / "base", base, texts, seed, wanted, room)
    return found


def line(first: str, numbers: dict[str, float]) -> str:
    """A row of the table."""
    losses = f"{numbers['base']:7.4f} {numbers['tuned']:7.4f}" if "base" in numbers else " " * 15
    return f"{first:22} {losses} " + "".join(f"{numbers[rule]:13.3f}" for rule in RULES)


def verdicts(wanted: float, cells: list[dict[str, float]]) -> Iterator[tuple[str, bool]]:
    """The targets at one strength, and whether each is met."""
    kept = {rule: [found[rule] for found in cells] for rule in RULES}
    median, worst = statistics.median(kept["faithful"]), min(kept["faithful"])
    yield f"ρ = {wanted:g}: faithful keeps {median:.3f} (median; at least {MEDIAN[wanted]})", median >= MEDIAN[wanted]
    yield f"ρ = {wanted:g}: faithful keeps {worst:.3f} (worst; at least {WORST})", worst >= WORST
    lost = statistics.median(kept["nearest"])
    yield f"ρ = {wanted:g}: nearest keeps {lost:.3f} (median; at most {NEAREST[wanted]})", lost <= NEAREST[wanted]


def main() -> int:
    """0 if every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given, began = parser.parse_args(), time.monotonic()
    cells: dict[float, list[dict[str, float]]] = {wanted: [] for wanted in STRENGTHS}
    print(f"{'ρ          seed':22} {'base':>7} {'tuned':>7} " + "".join(f"{rule:>13}" for rule in RULES), flush=True)
    with ProcessPoolExecutor(given.seeds, mp_context=get_context("spawn")) as pool:  # at once, so that no core waits for the last one
        for seed, found in enumerate(pool.map(one_seed, range(given.seeds))):
            for wanted, numbers in found.items():
                cells[wanted].append(numbers)
                print(line(f"{numbers['rho']:<10.3g} {seed}", numbers), flush=True)
    for wanted, found in cells.items():
        for label, fold in (("median", statistics.median), ("worst", min)):
            print(line(f"{wanted:<10g} {label}", {rule: fold(one[rule] for one in found) for rule in RULES}))
    judged = [verdict for wanted, found in cells.items() for verdict in verdicts(wanted, found)]
    print("\n".join(f"{'met   ' if met else 'MISSED'}  {text}" for text, met in judged))
    print(f"{time.monotonic() - began:.0f} s")
    if given.json:
        given.json.write_text(json.dumps({str(wanted): found for wanted, found in cells.items()}, indent=2) + "\n")
    return int(not all(met for _, met in judged))


if __name__ == "__main__":
    sys.exit(main())
