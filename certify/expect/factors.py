"""A part of the ledger as numbers: its two thin factors, read from the adapter."""

import torch

from certify.bounds import Delta
from certify.expect.ledger import Part


def factors(part: Part) -> Delta:
    """Both factors in float32, in the order in which the tensor is stored. Raises DamagedError where a file ends early."""
    a, b = part.a.load(), part.b.load()
    dtype = a.dtype if a.dtype == b.dtype else torch.float32
    if part.orientation == "out,in":
        return Delta(b.float(), a.float(), part.scaling, dtype)
    return Delta(a.float().T.contiguous(), b.float().T.contiguous(), part.scaling, dtype)
