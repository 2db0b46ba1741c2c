"""compressed-tensors' "float-quantized": e4m3 codes with one `weight_scale` per tensor, per output channel, or per block.

    W[i, j] = codes[i, j] · weight_scale[i]

Source: compressed-tensors, quantization/lifecycle/forward.py (_dequantize), compressors/quantized_compressors/naive_quantized.py.
"""

from collections.abc import Mapping
from typing import Any

from merge.encodings.scheme import Scheme
from merge.errors import NOTHING_WRITTEN, CheckpointError

STRATEGIES = {"tensor": (0, 0), "channel": (1, 0)}  # (height, width) of what shares a scale, 0 for all of it
BESIDE = (".input_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale")


def claim(settings: Mapping[str, Any]) -> Scheme | None:
    """The scheme of a compressed-tensors configuration in this format. Raises CheckpointError where a group of it is of another kind."""
    if settings.get("quant_method") != "compressed-tensors" or settings.get("format") != "float-quantized":
        return None
    groups = settings.get("config_groups")
    weights = [group.get("weights") for group in groups.values()] if isinstance(groups, dict) and groups else [None]
    blocks = {_block(weight): None for weight in weights}
    return Scheme("compressed-tensors float-quantized", "_scale", tuple(blocks), BESIDE)


def _block(weights: Any) -> tuple[int, int]:
    match weights:
        case {"num_bits": 8, "type": "float", "strategy": "tensor" | "channel" as strategy, **rest} if rest.get("symmetric", True):
            return STRATEGIES[strategy]
        case {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [int(height), int(width)]} if height > 0 < width:
            return height, width
        case _:
            raise CheckpointError(f"quantization_config: weights {weights}: not merged by this version. {NOTHING_WRITTEN}")
