"""What the gate is asked to judge: directories and the declared terms of the judgement."""

import re
from dataclasses import dataclass
from pathlib import Path

from certify.errors import UsageError

CRITERIA = ("nearest", "peft", "faithful")
LEVELS = ("weights", "modules", "layers", "logits")  # each includes those before it
OUTPUT_DTYPES = ("same", "bf16", "fp16", "fp32")
REQUESTER = "LORA_CERTIFY_REQUESTER"  # the environment variable that stands for --requester
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Request:
    """One question to the gate.

    base, merged   checkpoint directories
    adapters       adapter directories; empty: the one that the merged directory's manifest names is located
    weights        one factor per adapter; empty: all 1.0
    criterion      which rounding is right: "nearest" (one rounding), "peft" (also PEFT's double roundings), "faithful" (to a neighbour)
    output_dtype   the declared transform of the stored dtype
    level          what exit code 0 requires
    min_retention  least share of the adapter's change that must be in the stored weights (C8)
    base_digest    the folder digest that the base must have, 64 hex digits; None: any
    accept         the TOML file of declared differences; None: there are none
    only           fnmatch pattern; subjects outside it are not judged and the verdict is INCOMPLETE
    requester      who asks, as they say themselves; None: nobody said
    """

    base: Path
    merged: Path
    adapters: tuple[Path, ...] = ()
    weights: tuple[float, ...] = ()
    criterion: str = "nearest"
    output_dtype: str = "same"
    level: str = "layers"
    only: str | None = None
    min_retention: float = 0.5
    base_digest: str | None = None
    accept: Path | None = None
    requester: str | None = None

    def reaches(self, level: str) -> bool:
        """Whether the checks of a level are asked for."""
        return LEVELS.index(level) <= LEVELS.index(self.level)

    def refuse_unusable(self) -> None:
        """Raises UsageError for a question that makes no sense."""
        named = [("--base", self.base), ("--merged", self.merged), *(("--adapter", path) for path in self.adapters)]
        for option, path in named:
            if not path.is_dir():
                raise UsageError(f"{option} {path}: no such directory")
        if self.weights and len(self.weights) != len(self.adapters):
            raise UsageError(f"{len(self.weights)} --weight for {len(self.adapters)} --adapter; give one for each, or none")
        chosen = {"criterion": CRITERIA, "output_dtype": OUTPUT_DTYPES, "level": LEVELS}
        for name, known in chosen.items():
            if getattr(self, name) not in known:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: known are {', '.join(known)}")
        if not 0 <= self.min_retention <= 1:
            raise UsageError(f"--min-retention {self.min_retention}: a share between 0 and 1")
        if self.base_digest is not None and not DIGEST.fullmatch(self.base_digest):
            raise UsageError(f"--base-digest {self.base_digest}: 64 hexadecimal digits, the sha256 of a folder")
