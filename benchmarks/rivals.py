"""Other ways to store a fine-tune on fp8 codes, for comparison only: none of them is in the engine.

All work on one weight: wanted, base, delta  (rows, columns)  float32, whole blocks;  scales  (block rows, block columns)
"""

import torch

E4M3_MAX = 448.0
ROUNDS = 5  # of feedback
FACTORS = torch.linspace(0.85, 1.15, 19)  # of a block's scale


def feedback(wanted: torch.Tensor, scales: torch.Tensor, block: int, a: torch.Tensor) -> torch.Tensor:
    """Error feedback: the rounding error in the adapter's inputs is taken off the target, and all is rounded again.

    a  (rank, columns)  the adapter's A
    """
    spread, Q = _spread(scales, block), torch.linalg.qr(a.T)[0]
    target = wanted
    for _ in range(ROUNDS):
        stored = _nearest(target, spread)
        target = target - ((stored - wanted) @ Q) @ Q.T
    return stored


def scale_search(wanted: torch.Tensor, base: torch.Tensor, delta: torch.Tensor, scales: torch.Tensor, block: int) -> torch.Tensor:
    """Of `FACTORS` times the base's scale, each block takes the one whose stored delta points most nearly along the wanted one.

    Source: DAQ, arXiv:2603.22324, with the cosine as its measure.
    """
    spread, best = _spread(scales, block), torch.full_like(scales, -torch.inf)
    found = torch.empty_like(wanted)
    for factor in FACTORS:
        stored = _nearest(wanted, spread * factor)
        moved = stored - base
        length = (_sums(moved.square(), block) * _sums(delta.square(), block)).sqrt()
        cosine = _sums(moved * delta, block) / length.clamp_min(torch.finfo(torch.float32).tiny)
        found = torch.where(_spread(cosine > best, block), stored, found)
        best = torch.maximum(best, cosine)
    return found


def _nearest(values: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    return (values / spread).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float() * spread


def _spread(blocks: torch.Tensor, block: int) -> torch.Tensor:
    """Each block's number at each of its elements."""
    return blocks.repeat_interleave(block, 0).repeat_interleave(block, 1)


def _sums(values: torch.Tensor, block: int) -> torch.Tensor:
    rows, columns = values.shape
    return values.view(rows // block, block, columns // block, block).sum((1, 3))
