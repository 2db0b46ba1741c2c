"""All experts of a layer in one tensor, at Llama-4 Maverick's true size: `python -m benchmarks.fused [--experts 128] [--room DIR]`.

`gate_up_proj` is (128, 5120, 16384) in bf16, 21.5 GB, and `down_proj` half of that. The base is a sparse file of zeros with noise in one
expert; the adapter has PEFT's own shapes for the two parameters. Prints seconds, bytes a second and peak RSS; exits with 1 where the
memory is more than a slab's or where the noisy expert is not W + Δ to the nearest.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.speed import timed
from merge.catalog import Catalog, compose

HIDDEN, INNER = 5120, 8192
RANK, ALPHA = 16, 32
RSS = 1024  # MiB
ROWS = 64  # of the noisy expert, held against float64
STACKS = ("gate_up_proj", "down_proj")
NOISY = 77  # the expert whose numbers are not zero
SIGMA = 0.02


def skeleton(experts: int) -> Any:
    """One layer with every expert, on no device."""
    config = transformers.Llama4TextConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, intermediate_size_mlp=2 * INNER, num_hidden_layers=1, num_local_experts=experts,
        num_experts_per_tok=1, interleave_moe_layer_step=1, vocab_size=256, tie_word_embeddings=False, dtype="bfloat16",
        pad_token_id=0, bos_token_id=1, eos_token_id=2, architectures=["Llama4ForCausalLM"],
    )  # fmt: skip
    with torch.device("meta"):
        return transformers.Llama4ForCausalLM(config)


def make(room: Path, experts: int) -> tuple[Path, Path, Catalog]:
    """(base, adapter, what is in the base's one file)."""
    model = skeleton(experts)
    base, adapter = room / "base", room / "adapter"
    base.mkdir()
    adapter.mkdir()
    model.config.save_pretrained(base)
    shapes = [(name, "BF16", tuple(value.shape)) for name, value in model.state_dict().items()]
    catalog = compose("model.safetensors", shapes, {"format": "pt"})
    with (base / catalog.file).open("wb") as stream:
        stream.write(catalog.header)
        stream.truncate(catalog.size)
        for tensor in catalog.tensors:
            if tensor.name.endswith(STACKS):
                size = tensor.size // experts
                stream.seek(tensor.start + NOISY % experts * size)
                stream.write(_noise((size // 2,), 0).bfloat16().view(torch.uint8).numpy().tobytes())
    _write_adapter(model, adapter)
    return base, adapter, catalog


def _noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * SIGMA


def _write_adapter(model: Any, adapter: Path) -> None:
    """PEFT's names and shapes, and noise for numbers."""
    settings = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=[], target_parameters=[f"experts.{name}" for name in STACKS], task_type="CAUSAL_LM"
    )
    wrapped = peft.get_peft_model(model, settings)
    state = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    save_file(
        {name: _noise(tuple(value.shape), seed) for seed, (name, value) in enumerate(sorted(state.items()), 1)},
        adapter / "adapter_model.safetensors",
    )
    wrapped.peft_config["default"].save_pretrained(adapter)


def wrong(base: Path, adapter: Path, out: Path, experts: int) -> int:
    """Elements of the noisy expert that are not W + Δ rounded once to bf16, in the first rows of each stack, against float64."""
    expert, count = NOISY % experts, 0
    (written,) = out.glob("*.safetensors")
    with safe_open(base / "model.safetensors", "pt") as before, safe_open(written, "pt") as after:
        for name in before.keys():  # noqa: SIM118  # safe_open is no mapping
            if not name.endswith(STACKS):
                continue
            weight, stored = (file.get_slice(name)[expert, :ROWS].double() for file in (before, after))
            delta = _delta(adapter, name.endswith(STACKS[0]), experts, expert)
            exact = weight + delta
            half = torch.ldexp(torch.ones_like(exact), torch.frexp(exact).exponent - 9)  # of a step between bf16 numbers
            reach = half + (weight.abs() + delta.abs()) * 2**-20
            count += int(((stored - exact).abs() > reach).sum())
    return count


def _delta(adapter: Path, inner: bool, experts: int, expert: int) -> torch.Tensor:
    """Rows of one expert's Δ, float64. inner  the parameter that PEFT wrapped first. Source: peft, tuners/lora/layer.py, ParamWrapper."""
    low, high = sorted(name for name in load_file(adapter / "adapter_model.safetensors") if (".base_layer." in name) is inner)
    with safe_open(adapter / "adapter_model.safetensors", "pt") as factors:
        a, b = factors.get_tensor(low).double(), factors.get_tensor(high)[:ROWS].double()
    return ALPHA / RANK * b.view(ROWS, RANK, experts)[:, :, expert] @ a.view(experts, RANK, -1)[expert]


def main() -> int:
    """0 if the memory stays a slab's and the numbers are right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--room", type=Path, help="where 32 GB are written and deleted; default: a temporary directory")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.room) as folder:
        base, adapter, catalog = make(Path(folder), given.experts)
        out = Path(folder) / "out"
        seconds, _ = timed([sys.executable, "-m", "merge", "run", f"--base={base}", f"--adapter={adapter}", f"--out={out}", "--quiet"])
        rss = json.loads((out / "merge-run.jsonl").read_text().splitlines()[-1])["peak_rss"] / 2**20
        print(f"{catalog.size / 1e9:.1f} GB: {seconds:.1f} s, {catalog.size / seconds / 1e6:.0f} MB/s, peak RSS {rss:.0f} MiB")
        off = wrong(base, adapter, out, given.experts)
    print(f"{off} elements of expert {NOISY % given.experts} are not W + Δ rounded once")
    return int(rss > RSS or off > 0)


if __name__ == "__main__":
    sys.exit(main())
