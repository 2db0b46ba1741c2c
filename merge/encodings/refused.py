"""Quantised checkpoints that are not merged into, each with what to do instead."""

from collections.abc import Mapping
from typing import Any

from merge.errors import NOTHING_WRITTEN, CheckpointError

REQUANTISE = "merge into the checkpoint that it was made from, and quantise the result again"
ELSEWHERE = {
    "bitsandbytes": f"the weights are packed by a library that runs on a GPU: {REQUANTISE}; a QLoRA adapter fits that checkpoint as it is",
    "gptq": f"its codes were fitted to calibration data: {REQUANTISE}",
    "awq": f"its codes were fitted to calibration data: {REQUANTISE}",
    "mxfp4": "4-bit experts are not merged by this version: merge into a bf16 release of the same model",
    "pack-quantized": "INT4 weights are not merged by this version: merge into a bf16 release of the same model",
    "fbgemm_fp8": f"its layout is not merged by this version: {REQUANTISE}",
    "modelopt": f"its layout is not merged by this version: {REQUANTISE}",
}


def refusal(settings: Mapping[str, Any]) -> CheckpointError:
    """Of a configuration that is of no scheme that is merged."""
    method = settings.get("quant_method")
    if method == "compressed-tensors":
        method = settings.get("format")
    elif method is None and settings.get("load_in_4bit", settings.get("load_in_8bit")):
        method = "bitsandbytes"
    reason = ELSEWHERE.get(str(method), f"not known to this version: {REQUANTISE}")
    return CheckpointError(f"the base is quantised by {method}; {reason}. {NOTHING_WRITTEN}")
