"""What is judged: every fp8 proxy, its adapter at two strengths, and the engine's merges of them, each made once."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import merge
from exam.giants.folder import Folder, copied, encode, fresh_scales
from merge.proxies.adapter import make_adapter
from merge.proxies.checkpoint import make_checkpoint

PROXIES = (
    *("deepseek-v3-fp8", "deepseek-v3-fp8-ragged", "deepseek-v3-fp8-ue8m0", "deepseek-v3-fp8-e8m0", "deepseek-v3-fp8-apart"),
    *("llama-fp8-channel", "llama-fp8-tensor"),
)
FUSED = "qwen3.5-moe-fp8"  # made here: stacks of experts as codes, with blocks that end inside an expert
FUSED_BLOCK = (24, 32)
BYTES = "deepseek-v3-fp8-bytes"  # exponents that a header calls U8
ORIGINAL = "original"  # the proxy that one was made from, which its adapter is trained on
FAINT = 1 / 16  # of what the proxy's adapter adds: ‖Δ‖/‖W‖ of about 4e-3


@dataclass(frozen=True, slots=True)
class Way:
    """How a merge is made. criterion: the one that it is judged by."""

    output: str
    rounding: str
    criterion: str
    faint: bool = False

    def __str__(self) -> str:
        return f"{self.output} {self.rounding}{' faint' if self.faint else ''}"


NEAREST, DECODED = Way("same", "nearest", "nearest"), Way("bf16", "nearest", "nearest")
FAITHFUL, BY_CHANCE = Way("same", "faithful", "faithful"), Way("same", "stochastic", "faithful")
LIGHT, LOST = Way("same", "faithful", "faithful", faint=True), Way("same", "nearest", "nearest", faint=True)
WAYS = (NEAREST, FAITHFUL, BY_CHANCE, DECODED, LIGHT, Way("bf16", "nearest", "nearest", faint=True))


class Shelf:
    """Bases, adapters and merges below one directory."""

    def __init__(self, room: Path) -> None:
        self.room = room

    def base(self, proxy: str) -> Path:
        path = self.room / proxy / "base"
        if not path.exists():
            MADE[proxy](path) if proxy in MADE else make_checkpoint(proxy, path)
        return path

    def adapter(self, proxy: str, *, faint: bool = False) -> Path:
        path = self.room / proxy / ("faint" if faint else "adapter")
        if not path.exists() and faint:
            _weakened(self.adapter(proxy), path)
        elif not path.exists():
            base = self.base(proxy)
            make_adapter(base.parent / ORIGINAL if proxy in MADE else base, path)
        return path

    def merged(self, proxy: str, way: Way) -> Path:
        path = self.room / proxy / str(way).replace(" ", "-")
        if not path.exists():
            adapter = self.adapter(proxy, faint=way.faint)
            merge.merge(self.base(proxy), adapter, path, output_dtype=way.output, rounding=way.rounding)
        return path


def _weakened(adapter: Path, out: Path) -> None:
    shutil.copytree(adapter, out)
    path = out / "adapter_model.safetensors"
    save_file({name: tensor * FAINT if "lora_B" in name else tensor for name, tensor in load_file(path).items()}, path)


def _fused(out: Path) -> None:
    """The plain proxy of fused experts, with its stacks quantised matrix by matrix; the configuration speaks of the text model alone."""
    plain = make_checkpoint("qwen3.5-moe", out.parent / ORIGINAL)
    folder: Folder = copied(plain, out)
    for name, stack in list(folder.tensors.items()):
        if ".language_model.layers." in name and ".mlp.experts." in name:
            scales = torch.stack([fresh_scales(matrix, block=FUSED_BLOCK) for matrix in stack])
            folder.tensors[name] = torch.stack([encode(matrix.float(), s, FUSED_BLOCK) for matrix, s in zip(stack, scales, strict=True)])
            folder.tensors[f"{name}_scale_inv"] = scales
    settings = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(FUSED_BLOCK)}
    folder.config["text_config"]["quantization_config"] = settings
    folder.write()


def _bytes(out: Path) -> None:
    folder = copied(make_checkpoint("deepseek-v3-fp8-e8m0", out.parent / ORIGINAL), out)
    exponents = {name: tensor.view(torch.uint8) for name, tensor in folder.tensors.items() if tensor.dtype == torch.float8_e8m0fnu}
    folder.tensors |= exponents
    folder.write()


MADE = {FUSED: _fused, BYTES: _bytes}
