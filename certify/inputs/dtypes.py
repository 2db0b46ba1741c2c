"""What a safetensors dtype name means. The gate's own table."""

from typing import Final

import torch

BITS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

FLOATS: Final = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}  # what this version computes with
NAMES: Final = {dtype: name for name, dtype in FLOATS.items()}
TARGETS: Final = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}  # --output-dtype → the name in a header
TORCH_NAMES: Final = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}  # a header's dtype → what a configuration calls it
