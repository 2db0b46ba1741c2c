"""To the nearest grid point: what every merge did before, and still the default where the grid is fine enough."""

import torch


def nearest(exact: torch.Tensor, stored: torch.Tensor) -> bool:
    """Round once, to the nearest grid point, ties to even; False if a value became infinite or is not a number.

    exact  float32      stored  same shape, the output's dtype, overwritten

    Source: IEEE 754-2019 §4.3.1. The sum shows a NaN or an infinity without a second pass over memory; it may overflow by
    itself, so only then is every element looked at.
    """
    stored.copy_(exact)
    return bool(stored.sum().isfinite()) or bool(stored.isfinite().all())
