"""A part of the delta that is missing, or another one that stands for it."""

import torch
from torch import Tensor

from exam.faults.registry import in_tensor
from exam.site import Site


def ranks(s: Site, kept: slice) -> Tensor:
    return s.scaling * (s.B[:, kept] @ s.A[kept])


def left_unmerged(s: Site, rows: slice, columns: slice) -> Tensor:
    merged = s.sound.clone()
    merged[rows, columns] = s.W[rows, columns]
    return merged


@in_tensor("C4", "C5", cause="4 of 8 ranks")
def half_of_the_ranks(s: Site) -> Tensor:
    return s.merge(ranks(s, slice(s.rank // 2)))


@in_tensor("C4", "C5", cause="7 of 8 ranks")
def one_rank_dropped(s: Site) -> Tensor:
    return s.merge(ranks(s, slice(1, None)))


@in_tensor("C4", "C5")
def half_of_the_ranks_lost_a_tenth(s: Site) -> Tensor:
    """As a second adapter whose weight is 0.9 of what it should be."""
    half = s.rank // 2
    return s.merge(ranks(s, slice(half)) + 0.9 * ranks(s, slice(half, None)))


@in_tensor("C4", cause="never merged in rows")
def last_row_left_unmerged(s: Site) -> Tensor:
    return left_unmerged(s, slice(-1, None), slice(None))


@in_tensor("C4", "C5", cause="never merged in columns")
def last_columns_left_unmerged(s: Site) -> Tensor:
    return left_unmerged(s, slice(None), slice(-s.W.shape[1] // 8, None))


@in_tensor("C4", cause="never merged in rows")
def one_tile_left_unmerged(s: Site) -> Tensor:
    high, wide = s.W.shape[0] // 4, s.W.shape[1] // 4
    return left_unmerged(s, slice(0, high), slice(wide, 2 * wide))


@in_tensor("C4", "C5")
def every_other_row_left_unmerged(s: Site) -> Tensor:
    return left_unmerged(s, slice(0, None, 2), slice(None))


@in_tensor("C4")
def one_block_of_rows_merged_twice(s: Site) -> Tensor:
    merged = s.sound.clone()
    merged[:8] = s.merge(s.delta(), s.sound)[:8]
    return merged


@in_tensor("C4")
def rows_merged_with_the_delta_of_the_block_before(s: Site) -> Tensor:
    merged = s.sound.clone()
    merged[8:16] = (s.W[8:16].float() + s.delta()[:8]).to(s.dtype)
    return merged


@in_tensor("C4", "C5")
def only_the_positive_half(s: Site) -> Tensor:
    return s.merge(s.delta().clamp(min=0))


@in_tensor("C4")
def small_elements_of_the_delta_pruned(s: Site) -> Tensor:
    delta = s.delta()
    return s.merge(torch.where(delta.abs() < delta.abs().median(), 0.0, delta))


@in_tensor("C4", "C5", cause="stale")
def stale_adapter(s: Site) -> Tensor:
    """A checkpoint of the same training a little earlier: 5 % off."""
    noise_a, noise_b = torch.randn_like(s.A), torch.randn_like(s.B)
    return s.merge(s.scaling * ((s.B + 0.05 * s.B.std() * noise_b) @ (s.A + 0.05 * s.A.std() * noise_a)))


@in_tensor("C4", "C5")
def noise_of_the_right_norm(s: Site) -> Tensor:
    delta, noise = s.delta(), torch.randn(s.W.shape)
    return s.merge(noise * (delta.norm() / noise.norm()))


@in_tensor("C4", "C5")
def noise_added_to_the_delta(s: Site) -> Tensor:
    return s.merge(s.delta() + 0.05 * s.delta().std() * torch.randn(s.W.shape))


@in_tensor("C4")
def norms_of_the_rows_kept(s: Site) -> Tensor:
    """As if the adapter were a DoRA whose magnitudes were never trained."""
    moved = s.W.float() + s.delta()
    factors: Tensor = s.W.float().norm(dim=1, keepdim=True) / moved.norm(dim=1, keepdim=True)
    return (moved * factors).to(s.dtype)
