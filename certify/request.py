"""What the gate is asked to judge: directories and the declared terms of the judgement."""

from dataclasses import dataclass
from pathlib import Path

CRITERIA = ("nearest", "peft", "faithful")
LEVELS = ("weights", "modules", "layers", "logits")
REACHED = LEVELS[:2]  # those that this version has
OUTPUT_DTYPES = ("same", "bf16", "fp16", "fp32")


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the gate.

    base, merged   checkpoint directories
    adapters       adapter directories; empty: the one that the merged directory's manifest names is located
    weights        one factor per adapter; empty: all 1.0
    criterion      which rounding is right: "nearest" (one rounding), "peft" (also PEFT's double roundings)
    output_dtype   the declared transform of the stored dtype
    level          what exit code 0 requires
    min_retention  least share of the adapter's change that must be in the stored weights (C8)
    base_digest    the folder digest that the base must have, 64 hex digits; None: any
    only           fnmatch pattern; subjects outside it are not judged and the verdict is INCOMPLETE
    """

    base: Path
    merged: Path
    adapters: tuple[Path, ...] = ()
    weights: tuple[float, ...] = ()
    criterion: str = "nearest"
    output_dtype: str = "same"
    level: str = "weights"
    only: str | None = None
    min_retention: float = 0.5
    base_digest: str | None = None
