"""How numbers are stored. One small file per storage format; a new one is a file and a line in `ENCODINGS` or `SCHEMES`."""

from collections.abc import Callable, Mapping
from typing import Any

from merge.catalog import Tensor
from merge.encodings import e4m3, e8m0, float_quantized, fp8_block, plain, refused, scheme
from merge.encodings.blocks import BlockScales
from merge.encodings.contract import Encoding, Grid
from merge.encodings.plain import Plain
from merge.encodings.scheme import CODES, DECLARED_IN, Scheme

__all__ = ["CODES", "DECLARED_IN", "BlockScales", "Encoding", "Grid", "Scheme", "merged", "named", "of", "quantised", "refusals"]

PLAIN: tuple[Plain, ...] = (plain.BF16, plain.F16, plain.F32)
ENCODINGS: tuple[Encoding, ...] = (*PLAIN, e4m3.CODES, e8m0.BYTES, e8m0.UNNAMED)
SCHEMES: Mapping[Callable[[Mapping[str, Any]], Scheme | None], str | None] = {
    fp8_block.claim: fp8_block.__doc__,
    float_quantized.claim: float_quantized.__doc__,
}


def of(tensor: Tensor) -> Plain | None:
    """The plain encoding that claims this tensor, or None: it is quantised, or no numbers that an adapter could change."""
    return next((encoding for encoding in PLAIN if encoding.dtype == tensor.dtype), None)


def named(dtype: str) -> Encoding:
    """The encoding of a dtype that the plan has already accepted."""
    return next(encoding for encoding in ENCODINGS if encoding.dtype == dtype)


def quantised(config: Mapping[str, Any]) -> Scheme | None:
    """The scheme that a config.json declares; None for a plain checkpoint. Raises CheckpointError for one that is not merged."""
    settings = scheme.declared(config)
    if settings is None:
        return None
    found = next((claimed for claim in SCHEMES if (claimed := claim(settings))), None)
    if found is None:
        raise refused.refusal(settings)
    return found


def merged() -> list[str]:
    """Every way to store a base that is merged into, in a line each."""
    plain_dtypes = ", ".join(encoding.dtype for encoding in PLAIN)
    return [plain_dtypes, *((text or "").partition("\n")[0].rstrip(".") for text in SCHEMES.values())]


def refusals() -> Mapping[str, str]:
    """Quantisation → why it is not merged into, and what to do instead."""
    return refused.ELSEWHERE
