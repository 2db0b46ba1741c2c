"""Rehearsals against reality: `python -m benchmarks.rehearsal [--room DIR] [--only PATTERN] [--no-giant]`.

Every proxy family is rehearsed, six of them in two sizes. The forecast's JSON is written, and its sha256 printed, before the real run
starts; then the disk must be exact to the byte, the peak memory within 20 %, the time within × 2. At last the headers of DeepSeek-V3 as it
was published, 91,991 tensors and 688 GB, in sparse files: a twin, the gate, and a forecast. Exits with 1 where a target is missed.
"""

import argparse
import fnmatch
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from merge.catalog import compose
from merge.proxies import families, make_adapter, make_checkpoint
from merge.proxies.checkpoint import FAMILIES
from merge.proxies.families import Spec

RSS, TIMES = 0.2, 2.0  # what a forecast may be off: of the memory as a share, of the time as a factor
SECONDS, SECONDS_OF_GIANTS, TWIN = 120, 300, 50_000_000
COMPARED = ("llama", "qwen2", "gpt2", "llama4", "deepseek-v3", "deepseek-v3-fp8")
LARGE = {"hidden_size": 1536, "intermediate_size": 4608, "num_attention_heads": 12, "num_key_value_heads": 4}
LARGE_WIDE = {
    **{"hidden_size": 1024, "intermediate_size": 2048, "moe_intermediate_size": 512, "n_routed_experts": 16, "num_attention_heads": 8},
    **{"num_key_value_heads": 8, "q_lora_rank": 384, "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64},
}
DEEPER = {"gpt2": 48, "llama4": 32}  # layers of the larger size, where the width is the family's own
LAYERS, SHARDS, RANK, BLOCK = 61, 163, 8, 128
GIANT = {
    **{"hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "num_hidden_layers": LAYERS, "vocab_size": 129280},
    **{"first_k_dense_replace": 3, "n_routed_experts": 256, "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8},
    **{"num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128},
    **{"qk_rope_head_dim": 64, "v_head_dim": 128, "max_position_embeddings": 163840, "bos_token_id": 0, "eos_token_id": 1},
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]},
}
ADAPTED = {
    "attention": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"),
    "experts": ("gate_proj", "up_proj", "down_proj"),  # as ColossalAI adapts them: 89,454 tensors
}


@contextmanager
def larger() -> Iterator[None]:
    """Families are as wide as small published models, for as long as this lasts."""
    common = families._common

    def wide(layers: int, *, tie_word_embeddings: bool) -> dict[str, Any]:
        return {**common(layers, tie_word_embeddings=tie_word_embeddings), **LARGE}

    with patch.object(families, "_common", wide), patch.dict(families.WIDE, LARGE_WIDE):
        yield


def proxy(room: Path, family: str, *, large: bool) -> tuple[Path, Path]:
    """(base, adapter), made once."""
    base, adapter = room / "base", room / "adapter"
    style = "colossalai" if family.startswith("deepseek") and large else "peft"
    if large:
        with larger():
            make_checkpoint(family, base, layers=DEEPER.get(family))
    else:
        make_checkpoint(family, base)
    return base, make_adapter(base, adapter, style=style)


def giant(room: Path, targets: tuple[str, ...]) -> tuple[Path, Path]:
    """DeepSeek-V3 as published and an adapter: headers are real, numbers are holes."""
    config = {**families.DEEPSEEK, **GIANT}
    tensors = [spec for plain in families._deepseek_tensors(config) for spec in _stored(plain)]
    base, adapter, weight_map = room / "base", room / "adapter", {}
    base.mkdir(parents=True)
    adapter.mkdir()
    for number in range(SHARDS):
        file = f"model-{number + 1:05d}-of-{SHARDS:06d}.safetensors"
        held = tensors[number * len(tensors) // SHARDS : (number + 1) * len(tensors) // SHARDS]
        _sparse(base / file, held)
        weight_map |= {name: file for name, _, _ in held}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (base / "config.json").write_text(json.dumps(config))
    _sparse(adapter / "adapter_model.safetensors", [pair for name, _, shape in tensors for pair in _pair(name, shape, targets)])
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": list(targets), "task_type": "CAUSAL_LM", "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    return base, adapter


def _stored(spec: Spec) -> Iterator[Spec]:
    """One tensor of the model as the files hold it: every projection in 8 bits, with its scales beside it."""
    name, _, shape = spec
    if "proj" not in name or "eh_proj" in name:
        yield spec
        return
    yield name, "F8_E4M3", shape
    yield f"{name}_scale_inv", "F32", (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK))


def _pair(name: str, shape: tuple[int, ...], targets: tuple[str, ...]) -> Iterator[Spec]:
    module = name.removesuffix(".weight")
    if module != name and module.endswith(targets) and int(name.split(".")[2]) < LAYERS:
        yield f"base_model.model.{module}.lora_A.weight", "BF16", (RANK, shape[1])
        yield f"base_model.model.{module}.lora_B.weight", "BF16", (shape[0], RANK)


def _sparse(path: Path, specs: list[Spec]) -> None:
    catalog = compose(path.name, specs, {"format": "pt"})
    with path.open("wb") as stream:
        stream.write(catalog.header)
        stream.truncate(catalog.size)


def rehearsed(base: Path, adapter: Path, out: Path) -> tuple[dict[str, Any], float]:
    """(what `rehearse` says, its wall seconds)."""
    began = time.monotonic()
    done = subprocess.run([*_merge("rehearse", base, adapter, out), "--json"], capture_output=True, text=True, check=False)
    if not done.stdout:
        raise SystemExit(f"rehearse ended with {done.returncode}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found | {"exit": done.returncode}, time.monotonic() - began


def _merge(command: str, base: Path, adapter: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "merge", command, f"--base={base}", f"--adapter={adapter}", f"--out={out}", "--output-dtype=same"]


def trial(name: str, base: Path, adapter: Path, room: Path, *, limit: int) -> tuple[dict[str, Any], list[str]]:
    """One rehearsal, a line of it, and what it missed."""
    found, seconds = rehearsed(base, adapter, room)
    twin, gate, defect, run = found["twin"], found["gate"], found["defect"], found["sample"]
    layer = f"{run['layer']} run  " if run else ""
    met = {"certified": found["passed"] and not found["exit"], "seconds": seconds <= limit, "bytes": twin["bytes"] <= TWIN}
    missed = [f"{name}: {what}" for what, fine in met.items() if not fine]
    print(
        f"{name:30s} ÷{twin['factor']:<4d} {sum(twin['tensors'].values()):>7,} tensors {twin['bytes'] / 1e6:6.2f} MB  {gate['verdict']}"
        f"({gate['level']})  defect {defect['verdict']}  {layer}{seconds:5.0f} s  {', '.join(missed)}",
        flush=True,
    )
    return found, missed


def compared(name: str, base: Path, adapter: Path, room: Path) -> tuple[str, list[str]]:
    """A line of forecast against reality, and what was missed; the rehearsal has written the forecast into `room`."""
    data = (room / "forecast.json").read_bytes()
    foretold: dict[str, Any] = json.loads(data)
    print(f"{name:30s} forecast.json  sha256 {hashlib.sha256(data).hexdigest()}", flush=True)
    os.sync()
    out, began = room / "real", time.monotonic()
    done = subprocess.run([*_merge("run", base, adapter, out), "--json"], capture_output=True, text=True, check=True)
    seconds = time.monotonic() - began
    real = {path.relative_to(out).as_posix(): path.stat().st_size for path in out.rglob("*") if path.is_file()}
    measured = {name: real.pop(name) for name in ("merge-manifest.json", "merge-run.jsonl")}
    rss, memory, guess = json.loads(done.stdout)["run"]["peak_rss"], foretold["memory"]["bytes"], foretold["seconds"]["whole"]
    met = {
        "disk": real == foretold["disk"]["files"] and all(measured.values()),
        "memory": abs(memory / rss - 1) <= RSS,
        "time": 1 / TIMES <= guess / seconds <= TIMES,
    }
    figures = f"{memory / 2**20:5.0f} {rss / 2**20:5.0f} {memory / rss:5.2f}   {guess:6.1f} {seconds:6.1f} {guess / seconds:5.2f}"
    disk = f"{foretold['disk']['bytes']:>13,} {sum(real.values()):>13,}"
    line = f"{name:22s} {disk}   {figures}   {'ok' if all(met.values()) else 'MISSED'}"
    return line, [f"{name}: {what}" for what, fine in met.items() if not fine]


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", type=Path, help="where checkpoints are made and deleted; default: a temporary directory")
    parser.add_argument("--only", default="*", help="families by pattern")
    parser.add_argument("--no-giant", action="store_true")
    given = parser.parse_args()
    lines, missed = [], []
    with tempfile.TemporaryDirectory(dir=given.room, prefix="rehearsal-") as folder:
        for family in fnmatch.filter(FAMILIES, given.only):
            for large in (False, True) if family in COMPARED else (False,):
                name, room = f"{family}{', large' if large else ''}", Path(folder) / f"{family}-{large}"
                base, adapter = proxy(room, family, large=large)
                missed += trial(name, base, adapter, room / "rehearsal", limit=SECONDS)[1]
                if family in COMPARED:
                    line, lacking = compared(name, base, adapter, room / "rehearsal")
                    lines, missed = [*lines, line], missed + lacking
        heads = f"{'':22s} {'bytes, foretold':>13s} {'real':>11s}   {'MiB':>5s} {'real':>5s} {'':5s}   {'s':>6s} {'real':>6s}"
        print("\n".join(["", heads, *lines, ""] if lines else []), flush=True)
        for name, targets in {} if given.no_giant else ADAPTED.items():
            room = Path(folder) / name
            base, adapter = giant(room, targets)
            found, lacking = trial(f"DeepSeek-V3, headers, {name}", base, adapter, room / "rehearsal", limit=SECONDS_OF_GIANTS)
            missed += lacking
            foretold = {key: found["forecast"][key] for key in ("tensors", "memory", "seconds")}
            print(
                f"  {foretold}, {found['forecast']['disk']['bytes']:,} bytes; merging the twin {found['twin']['merge_seconds']:.0f} s, "
                f"gate {found['gate']['seconds']:.0f} s, defect {found['defect']['seconds']:.0f} s, "
                f"layer {found['sample']['seconds']:.0f} s",
                flush=True,
            )
    print(f"missed: {'; '.join(missed)}" if missed else "targets met")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
