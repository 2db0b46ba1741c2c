"""Quantised proxies: e4m3 codes and their scales, as the published recipes make them; and the plain twin of a quantised checkpoint."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from merge import encodings
from merge.encodings.blocks import E4M3_MAX
from merge.proxies.families import Family, Spec
from merge.source import INDEX, read_base

KEPT = ("embed_tokens", "lm_head", "norm", "mlp.gate.", "eh_proj", "shared_head")  # what nobody quantises


@dataclass(frozen=True, slots=True)
class Quantiser:
    """One recipe.

    config   the `quantization_config` that the hub's files have
    suffix   of the scale's name      block  (height, width) of what shares a scale, 0 for all of it
    scale    dtype of the scales      powers  scales are powers of two      apart  scales follow after all weights: in other shards
    inputs   an activation scale stands beside each weight
    """

    config: dict[str, Any]
    suffix: str = "_scale_inv"
    block: tuple[int, int] = (128, 128)
    scale: str = "F32"
    powers: bool = False
    apart: bool = False
    inputs: bool = False

    def of(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(codes, scales) of a float32 matrix: amax / 448 per block, 1 for a block of zeros; ragged blocks end with the matrix."""
        rows, columns = weight.shape
        height, width = (self.block[0] or rows), (self.block[1] or columns)
        padded = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
        blocks = padded.view(len(padded) // height, height, -1, width)
        scales = blocks.abs().amax((1, 3)) / E4M3_MAX
        scales = torch.where(scales > 0, scales, 1.0)
        scales = torch.exp2(torch.ceil(torch.log2(scales))) if self.powers else scales
        stored = scales.to(SCALES[self.scale])
        codes = (blocks / stored.float()[:, None, :, None]).clamp(-E4M3_MAX, E4M3_MAX).view(padded.shape)[:rows, :columns]
        return codes.to(torch.float8_e4m3fn).contiguous(), stored.view(self.shape((rows, columns)))

    def shape(self, weight: tuple[int, ...]) -> tuple[int, ...]:
        """Of the scales of one weight; one for all of it is kept as a list of one number."""
        counts = tuple(-(-length // size) if size else 1 for length, size in zip(weight, self.block, strict=True))
        return (1,) if self.block == (0, 0) else counts


SCALES = {"F32": torch.float32, "BF16": torch.bfloat16, "F8_E8M0": torch.float8_e8m0fnu}
BLOCKS = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}


def _float_quantized(strategy: str, activations: dict[str, Any]) -> dict[str, Any]:
    """As llm-compressor writes it."""
    common = {"num_bits": 8, "type": "float", "symmetric": True, "actorder": None, "block_structure": None, "group_size": None}
    weights = {**common, "dynamic": False, "observer": "minmax", "observer_kwargs": {}, "strategy": strategy}
    group = {"input_activations": {**common, "observer": None, **activations}, "output_activations": None, "weights": weights}
    return {
        "config_groups": {"group_0": {**group, "targets": ["Linear"]}},
        "format": "float-quantized",
        "global_compression_ratio": None,
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


QUANTISERS = {
    "fp8": Quantiser(BLOCKS),
    "fp8-apart": Quantiser(BLOCKS, apart=True),
    "fp8-ue8m0": Quantiser({**BLOCKS, "scale_fmt": "ue8m0"}, powers=True),
    "fp8-e8m0": Quantiser({**BLOCKS, "scale_fmt": "ue8m0"}, powers=True, scale="F8_E8M0"),
    "fp8-channel": Quantiser(_float_quantized("channel", {"dynamic": True, "strategy": "token"}), "_scale", (1, 0), "BF16"),
    "fp8-tensor": Quantiser(_float_quantized("tensor", {"dynamic": False, "strategy": "tensor"}), "_scale", (0, 0), "BF16", inputs=True),
}


def quantised(family: Family, quantiser: Quantiser) -> Family:
    """The same family with its linear layers quantised; a scale follows its weight in the files, or all weights."""
    weights: list[Spec] = []
    scales: list[Spec] = []
    for name, dtype, shape in family.tensors:
        chosen = name.endswith("proj.weight") or name.endswith("_mqa.weight")
        if not chosen or any(kept in name for kept in KEPT):
            weights.append((name, dtype, shape))
            continue
        weights.append((name, encodings.CODES, shape))
        beside: list[Spec] = [(name + quantiser.suffix, quantiser.scale, quantiser.shape(shape))]
        if quantiser.inputs:
            beside.append((name.removesuffix("weight") + "input_scale", quantiser.scale, (1,)))
        (scales if quantiser.apart else weights).extend(beside)
    config = {**family.config, "quantization_config": quantiser.config}
    return replace(family, config=config, tensors=(*weights, *scales), quantiser=quantiser)


def twin(base: Path, room: Path) -> Path:
    """A checkpoint without quantisation that holds the numbers of a quantised one, in float32; the base itself if it is plain."""
    config = json.loads((base / "config.json").read_text())
    scheme = encodings.quantised(config)
    if scheme is None:
        return base
    catalog = {tensor.name: tensor for shard in read_base(base) for tensor in shard.tensors}
    held = {name: tensor for path in sorted(base.glob("*.safetensors")) for name, tensor in load_file(path).items()}
    scales = scheme.scales(catalog)
    plain = {name: tensor for name, tensor in held.items() if not scheme.belongs(name)}
    for name, scale in scales.items():
        rows, columns = catalog[name].shape
        values = held[scale.tensor.name].float().view(-1, -(-columns // scale.width))
        values = values.repeat_interleave(scale.height, 0)[:rows].repeat_interleave(scale.width, 1)[:, :columns]
        plain[name] = held[name].float() * values
    shutil.copytree(base, room, ignore=shutil.ignore_patterns("*.safetensors", INDEX))
    save_file(plain, room / "model.safetensors", metadata={"format": "pt"})
    (room / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key not in encodings.DECLARED_IN}))
    return room
