"""DeepSeek's fp8, and whatever follows it: e4m3 codes, and per block of 128 × 128 a `weight_scale_inv` that multiplies them.

    W[i, j] = codes[i, j] · weight_scale_inv[i // height, j // width]

The last block of a row or column of blocks may be smaller. Scales are F32, or powers of two ("ue8m0") kept as F32, F8_E8M0 or bytes.
Source: DeepSeek-V3, inference/kernel.py (weight_dequant); transformers, integrations/finegrained_fp8.py.
"""

from collections.abc import Mapping
from typing import Any

from merge.encodings.scheme import Scheme
from merge.errors import NOTHING_WRITTEN, CheckpointError

BESIDE = (".input_scale", ".activation_scale", ".output_scale", ".q_scale", ".k_scale", ".v_scale")  # of activations and caches


def claim(settings: Mapping[str, Any]) -> Scheme | None:
    """The scheme of a configuration whose `quant_method` is fp8. Raises CheckpointError where its fields say something else than that."""
    if settings.get("quant_method") != "fp8":
        return None
    form, size = settings.get("fmt", "e4m3"), settings.get("weight_block_size")
    if form != "e4m3" or not (size is None or _is_block(size)):
        raise CheckpointError(
            f"quantization_config: fmt {form!r}, weight_block_size {size!r}: not merged by this version. {NOTHING_WRITTEN}"
        )
    return Scheme("fp8", "_scale_inv", (tuple(size) if size else (0, 0),), BESIDE)


def _is_block(size: object) -> bool:
    return isinstance(size, list) and len(size) == 2 and all(type(length) is int and length > 0 for length in size)
