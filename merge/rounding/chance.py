"""To a neighbour by chance, without bias: the further a number is on its way to one, the likelier that one."""

import hashlib

import numpy as np
import torch

PER_COUNT = 8  # 32-bit numbers per step of Philox' counter


def draws(seed: int, name: str, first: int, count: int) -> torch.Tensor:
    """Uniform numbers in [0, 1) for elements first … of the tensor `name`: (count,) float32, multiples of 2⁻²⁴.

    Each belongs to its element, whatever slab and worker it is drawn in: the generator counts positions. Only the raw words are used,
    since numpy keeps those the same in every version.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox 4×64).
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:16], "little")
    skipped = first % PER_COUNT
    words = np.random.Philox(key=key, counter=first // PER_COUNT).random_raw((skipped + count + 1) // 2).astype("<u8")
    halves = words.view("<u4")[skipped : skipped + count] >> np.uint32(8)
    return torch.from_numpy(halves.astype(np.float32)).mul_(2.0**-24)


def stochastic(past: torch.Tensor, step: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """1, the upper neighbour, with the probability past / step, else 0; all of one shape, float32, `drawn` overwritten."""
    return drawn.mul_(step).lt_(past)
