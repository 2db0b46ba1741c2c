"""Numbers moved a little by chance, the same in every run: how strongly a unit answers to errors of its weights."""

import zlib

import torch
from torch import Tensor

from certify.bounds import Delta

SHAKE = 2.0**-12  # relative size of the perturbation: far above float32's own noise, small enough for a linear answer


def signs(key: str, row: int, shape: torch.Size) -> Tensor:
    """±1 by chance, the same in every run."""
    chance = torch.Generator().manual_seed(zlib.crc32(key.encode()) + row)
    return torch.randint(0, 2, shape, generator=chance, dtype=torch.float32).mul_(2).sub_(1)


def shaken_factors(key: str, row: int, delta: Delta) -> Delta:
    """A and B perturbed by chance, number by number. row: where in the tensor these rows begin."""
    left = delta.left * (1 + SHAKE * signs(f"{key} left", row, delta.left.shape))
    return Delta(left, delta.right * (1 + SHAKE * signs(f"{key} right", 0, delta.right.shape)), delta.scaling, delta.dtype)


def shaken(key: str, value: Tensor) -> Tensor:
    """Every number, and besides every row as a whole: sums whose terms cancel and sums whose terms agree both answer."""
    if not value.is_floating_point():
        return value
    rows = signs(key, 1, torch.Size([*value.shape[:1], *(1 for _ in value.shape[1:])]))
    return value * (1 + SHAKE * (rows + signs(key, 0, value.shape)))
