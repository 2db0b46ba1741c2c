"""A checkpoint directory as tensors, changed and written back into the same files; codes and scales by the textbook and torch's fp8."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

INDEX = "model.safetensors.index.json"
LARGEST = 448.0


class Folder:
    """One checkpoint. tensors: by name, to be changed freely; a name that is new goes into the file of the one it is named after."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = {path.name: load_file(path) for path in sorted(directory.glob("model*.safetensors"))}
        self._home = {name: file for file, held in self._files.items() for name in held}
        self.tensors: dict[str, Tensor] = {name: tensor for held in self._files.values() for name, tensor in held.items()}
        self.config: dict[str, Any] = json.loads((directory / "config.json").read_text())

    def write(self) -> None:
        """All files again; the index and config.json with them."""
        homes = {name: self._home.get(name) or self._beside(name) for name in self.tensors}
        for file in self._files:
            held = {name: self.tensors[name].contiguous().clone() for name, home in homes.items() if home == file}
            save_file(held, self.directory / file, metadata={"format": "pt"})
        if (self.directory / INDEX).exists():
            total = sum(tensor.nbytes for tensor in self.tensors.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(homes.items()))}
            (self.directory / INDEX).write_text(json.dumps(index, indent=2))
        (self.directory / "config.json").write_text(json.dumps(self.config, indent=2))

    def _beside(self, scale: str) -> str:
        """The file of the weight that a scale stands beside."""
        return next(file for name, file in self._home.items() if scale.startswith((name, f"{name.removesuffix('weight')}input")))


def copied(source: Path, out: Path) -> Folder:
    """A copy, without what the engine says about itself."""
    shutil.rmtree(out, ignore_errors=True)
    return Folder(Path(shutil.copytree(source, out, ignore=shutil.ignore_patterns("merge-*"))))


def adapter_delta(adapter: Path, key: str) -> Tensor:
    """s·B·A of one weight, float64; zeros where the adapter has none."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    held = load_file(adapter / "adapter_model.safetensors")
    stem = f"base_model.model.{key.removesuffix('.weight')}"
    a, b = held[f"{stem}.lora_A.weight"].double(), held[f"{stem}.lora_B.weight"].double()
    return config["lora_alpha"] / config["r"] * (b @ a)


def spread(scales: Tensor, shape: torch.Size, block: tuple[int, int] = (128, 128)) -> Tensor:
    """The scale of each element, float32; a block of 0: all of that axis."""
    rows, columns = shape
    height, width = block[0] or rows, block[1] or columns
    grid = scales.float().reshape(-1, -(-columns // width))
    return grid.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]


def encode(values: Tensor, scales: Tensor, block: tuple[int, int] = (128, 128)) -> Tensor:
    """Codes by the recipe: divided, cut off at ±448, rounded to the nearest."""
    return (values / spread(scales, values.shape, block)).clamp(-LARGEST, LARGEST).float().to(torch.float8_e4m3fn)


def fresh_scales(values: Tensor, *, powers: bool = False, block: tuple[int, int] = (128, 128)) -> Tensor:
    """max / 448 of each block, 1 for a block of zeros; powers: the next power of two above."""
    rows, columns = values.shape
    height, width = block[0] or rows, block[1] or columns
    padded = pad(values.float(), (0, -columns % width, 0, -rows % height))
    most = padded.view(len(padded) // height, height, -1, width).abs().amax((1, 3)) / LARGEST
    most = torch.where(most > 0, most, 1.0)
    return torch.exp2(torch.ceil(torch.log2(most))) if powers else most
