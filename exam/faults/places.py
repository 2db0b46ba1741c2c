"""A delta, or a whole tensor, in the wrong place or the wrong way round."""

import torch
from torch import Tensor

from exam.faults.registry import in_tensor
from exam.site import Site


@in_tensor("C4", "C5", cause="the delta of", seen="peft#788")
def delta_of_another_module(s: Site) -> Tensor:
    return s.merge(s.elsewhere())


@in_tensor("C4", "C5")
def half_of_it_from_another_module(s: Site) -> Tensor:
    return s.merge((s.delta() + s.elsewhere()) / 2)


@in_tensor("C4", "C5", cause="exchanged")
def another_module_whole(s: Site) -> Tensor:
    return s.merge(s.elsewhere(), s.other)


@in_tensor("C4", "C5")
def another_module_of_the_base(s: Site) -> Tensor:
    return s.other.clone()


@in_tensor("C4", "C5")
def right_delta_on_another_module_of_the_base(s: Site) -> Tensor:
    return s.merge(s.delta(), s.other)


@in_tensor("C4", "C5", cause="transposed", seen="axolotl 0.19: gpt-oss down_proj, which is square; zoo#779")
def delta_transposed(s: Site) -> Tensor | None:
    return s.merge(s.delta().T) if s.W.shape[0] == s.W.shape[1] else None


@in_tensor("C4", "C5")
def delta_reshaped_where_it_was_to_be_transposed(s: Site) -> Tensor:
    return s.merge(s.delta().T.reshape(s.W.shape))


@in_tensor("C4", "C5")
def weight_transposed_with_its_delta(s: Site) -> Tensor | None:
    return s.sound.T.contiguous() if s.W.shape[0] == s.W.shape[1] else None


@in_tensor("C4", "C5", seen="unsloth#6930, zoo#1232, zoo#1269: right norm, scrambled values")
def axes_of_b_scrambled(s: Site) -> Tensor:
    return s.merge(s.scaling * (s.B.reshape(s.rank, -1).T @ s.A))


@in_tensor("C4", "C5")
def axes_of_a_scrambled(s: Site) -> Tensor:
    return s.merge(s.scaling * (s.B @ s.A.reshape(-1, s.rank).T))


@in_tensor("C4", "C5")
def halves_of_the_delta_swapped(s: Site) -> Tensor:
    """As k and v in a fused projection."""
    return s.merge(torch.cat([*reversed(s.delta().chunk(2))]))


@in_tensor("C4", "C5")
def delta_permuted_for_rotary_embeddings(s: Site) -> Tensor:
    """Interleaved pairs where halves are due, in heads of 16 rows."""
    heads = s.delta().view(-1, 16, s.W.shape[1])
    return s.merge(heads.view(-1, 8, 2, s.W.shape[1]).transpose(1, 2).reshape(s.W.shape))


@in_tensor("C4", "C5")
def rows_of_the_delta_in_reverse(s: Site) -> Tensor:
    return s.merge(s.delta().flip(0))


@in_tensor("C4", "C5")
def columns_of_the_delta_in_reverse(s: Site) -> Tensor:
    return s.merge(s.delta().flip(1))
