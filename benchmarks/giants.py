"""One DeepSeek-V3 MoE layer at true size, merged to fp8 and to bf16: memory, core-minutes, and what bounds them.

`python benchmarks/giants.py [--experts 256] [--room DIR] [--json FILE]`. 256 experts are 11.5 GB of fp8, and 23 GB more are needed for the
largest of the outputs, one after the other. Each merge is the command line's own process; its CPU time, less what planning takes, is
extrapolated to the 671e9 elements of the whole model: the time of its own, which the target is for, and the kernel's for reading and
writing the files. Exits with 1 where a target is missed.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import save_file

from merge import encodings
from merge.arithmetic import Delta
from merge.catalog import compose
from merge.encodings import BlockScales, Grid
from merge.proxies.families import DEEPSEEK

ELEMENTS = 671_026_419_200  # parameters of the whole model, its MTP layer aside
CASES = {  # how it is merged → core-minutes that the whole model may take
    "fp8 → fp8, nearest": (("--output-dtype=same", "--rounding=nearest"), 30),
    "fp8 → fp8, faithful, 5 rounds": (("--output-dtype=same", "--rounding=faithful", "--rounds=5"), 200),
    "fp8 → fp8, faithful, 8 rounds": (("--output-dtype=same", "--rounding=faithful", "--rounds=8"), 260),
    "fp8 → bf16": (("--output-dtype=bf16",), None),
}
RSS = 1024  # MiB
RANK, ALPHA, RHO = 16, 32, 1e-2
HIDDEN, INNER, BLOCK = 7168, 2048, 128
SHARD = 4_300_000_000  # bytes, about as published
CONFIG = {
    **DEEPSEEK,
    **{"hidden_size": HIDDEN, "intermediate_size": 18432, "moe_intermediate_size": INNER, "vocab_size": 129280},
    **{"num_hidden_layers": 1, "first_k_dense_replace": 0, "num_attention_heads": 128, "num_key_value_heads": 128},
    **{"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_group": 8},
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]},
}
ATTENTION = {"q_a_proj": (1536, 7168), "q_b_proj": (24576, 1536), "kv_a_proj_with_mqa": (576, 7168), "kv_b_proj": (32768, 512)}


def weights(experts: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every quantised weight of the layer."""
    path = "model.layers.0"
    for name, shape in (ATTENTION | {"o_proj": (7168, 16384)}).items():
        yield f"{path}.self_attn.{name}.weight", shape
    for module in (*(f"experts.{number}" for number in range(experts)), "shared_experts"):
        for name, shape in (("gate_proj", (INNER, HIDDEN)), ("up_proj", (INNER, HIDDEN)), ("down_proj", (HIDDEN, INNER))):
            yield f"{path}.mlp.{module}.{name}.weight", shape


def make(room: Path, experts: int) -> tuple[Path, Path, int]:
    """(base, adapter, elements): written tensor by tensor; a scale follows its weight, as in the published files."""
    base, adapter = room / "base", room / "adapter"
    base.mkdir()
    adapter.mkdir()
    noise = torch.randn(BLOCK, HIDDEN * 4, generator=torch.Generator().manual_seed(0))
    codes = (noise * (448 / noise.abs().amax())).to(torch.float8_e4m3fn).view(torch.uint8).flatten()
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    filled = elements = 0
    for name, shape in weights(experts):
        if filled > SHARD:
            shards, filled = [*shards, []], 0
        shards[-1] += [(name, "F8_E4M3", shape), (f"{name}_scale_inv", "F32", (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK)))]
        filled, elements = filled + shape[0] * shape[1], elements + shape[0] * shape[1]
    weight_map = {}
    for number, specs in enumerate(shards, 1):
        catalog = compose(f"model-{number:05d}-of-{len(shards):06d}.safetensors", specs, {"format": "pt"})
        weight_map |= {tensor.name: catalog.file for tensor in catalog.tensors}
        with (base / catalog.file).open("wb") as stream:
            stream.write(catalog.header)
            for tensor in catalog.tensors:
                if tensor.dtype == "F32":
                    stream.write((torch.rand(tensor.shape) * 2e-4 + 1e-4).numpy().tobytes())
                else:
                    _fill(stream, codes, tensor.size)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (base / "config.json").write_text(json.dumps(CONFIG | {"n_routed_experts": experts}))
    _write_adapter(adapter, experts)
    return base, adapter, elements


def _fill(stream: Any, codes: torch.Tensor, size: int) -> None:
    while size > 0:
        part = codes[:size].numpy().tobytes()
        stream.write(part)
        size -= len(part)


def _write_adapter(adapter: Path, experts: int) -> None:
    """As ColossalAI's, in bf16: a pair for every gate, up and down, ‖Δ‖ about RHO of ‖W‖; the experts repeat a few pairs of noise."""
    generator, made = torch.Generator().manual_seed(1), {}
    sigma = 448 / 5 * 2e-4  # of the weights: 128 × 28672 normal numbers reach about five
    size = (RHO * sigma * RANK / ALPHA / RANK**0.5) ** 0.5
    for name, shape in weights(experts):
        if ".mlp." in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            made[f"{module}.lora_A.weight"] = (torch.randn(RANK, shape[1], generator=generator) * size).bfloat16()
            made[f"{module}.lora_B.weight"] = (torch.randn(shape[0], RANK, generator=generator) * size).bfloat16()
    save_file(made, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["gate_proj", "up_proj", "down_proj"]}))


def profile() -> dict[str, float]:
    """Nanoseconds per element and core of each step, on one slab of an expert that lies in the caches."""
    torch.set_num_threads(1)
    rows = 64
    count = rows * HIDDEN
    codes = torch.randint(0, 0x7F, (count,), dtype=torch.uint8)
    exact = torch.empty(rows, HIDDEN)
    plain, coded = encodings.named("BF16"), encodings.named(encodings.CODES)
    grid = Grid(coded, BlockScales(torch.ones(16, 56), BLOCK, BLOCK, INNER))
    delta = Delta(torch.randn(rows, RANK), torch.randn(RANK, HIDDEN), 1e-30)
    wide = torch.empty(2 * count, dtype=torch.uint8)
    steps: dict[str, Callable[[], object]] = {
        "decode by table": lambda: coded.decode(coded.view(codes, (rows, HIDDEN)), exact),
        "× scale": lambda: grid.scales.multiply(exact, 0),  # type: ignore[union-attr]
        "+ scaling · B · A": lambda: delta.apply(exact, 0),
        "÷ scale": lambda: grid.scales.divide(exact, 0),  # type: ignore[union-attr]
        "encode fp8": lambda: coded.encode(exact, coded.view(codes, (rows, HIDDEN))),
        "encode bf16": lambda: plain.encode(exact, plain.view(wide, (rows, HIDDEN))),
        "checksum": lambda: xxhash.xxh3_64_hexdigest(memoryview(codes.numpy())),
    }
    return {name: min(_seconds(step) for _ in range(30)) / count * 1e9 for name, step in steps.items()}


def _seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def main() -> int:
    """0 if every target is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--room", type=Path, help="where the checkpoints are made and deleted; default: a temporary directory")
    parser.add_argument("--workers", type=int, default=1, help="one by default: figures of one core, not of two that share their caches")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures: dict[str, Any] = {"experts": given.experts, "profile": profile()}
    with tempfile.TemporaryDirectory(dir=given.room) as folder:
        base, adapter, elements = make(Path(folder), given.experts)
        print(f"{elements:,} elements in {given.experts} experts, {sum(p.stat().st_size for p in base.iterdir()) / 1e9:.2f} GB")
        for case, (options, _) in CASES.items():
            figures[case] = _measured(base, adapter, Path(folder) / "out", case, options, elements, given.workers)
    for name, nanoseconds in figures["profile"].items():
        print(f"  {name:18s} {nanoseconds:5.2f} ns an element")
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    missed = [f"{case}: RSS" for case in CASES if figures[case]["rss"] > RSS]
    missed += [f"{case}: minutes" for case, (_, limit) in CASES.items() if limit and figures[case]["minutes"] > limit]
    print(f"missed: {'; '.join(missed)}" if missed else f"targets met, ≤ {RSS} MiB")
    return int(bool(missed))


def _measured(base: Path, adapter: Path, out: Path, case: str, options: tuple[str, ...], elements: int, workers: int) -> dict[str, float]:
    """`merge run`, less the CPU time that `merge plan` takes for the same."""
    words = [f"--base={base}", f"--adapter={adapter}", f"--out={out}", *options, f"--workers={workers}"]
    planned, run = ([sys.executable, "-m", "merge", command, *words] for command in ("plan", "run"))
    user, system, _ = _spent([*planned, "--json"])
    more_user, more_system, wall = _spent([*run, "--quiet"])
    user, system = more_user - user, more_system - system
    rss = json.loads((out / "merge-run.jsonl").read_text().splitlines()[-1])["peak_rss"] / 2**20
    minutes = [seconds / elements * ELEMENTS / 60 for seconds in (user, system)]
    print(
        f"{case}: {user:.1f} s user + {system:.1f} s system, {wall:.1f} s in all; for {ELEMENTS / 1e9:.0f}e9 elements "
        f"{minutes[0]:.1f} core-minutes and {minutes[1]:.1f} of the kernel's; peak RSS {rss:.0f} MiB",
        flush=True,
    )
    shutil.rmtree(out)
    return {"user": user, "system": system, "wall": wall, "minutes": minutes[0], "kernel_minutes": minutes[1], "rss": rss}


def _spent(command: list[str]) -> tuple[float, float, float]:
    """(user, system, wall) seconds of one process."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
