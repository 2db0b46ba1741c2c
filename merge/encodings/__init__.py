"""How numbers are stored. One small file per storage format; a new one is a file and a line in `ENCODINGS`."""

from merge.catalog import Tensor
from merge.encodings import plain
from merge.encodings.plain import Plain

ENCODINGS: tuple[Plain, ...] = (plain.BF16, plain.F16, plain.F32)


def of(tensor: Tensor) -> Plain | None:
    """The encoding that claims this tensor, or None: such a tensor is carried untouched and never merged into."""
    return next((encoding for encoding in ENCODINGS if encoding.dtype == tensor.dtype), None)


def named(dtype: str) -> Plain:
    """The encoding of a dtype that the plan has already accepted."""
    return next(encoding for encoding in ENCODINGS if encoding.dtype == dtype)
