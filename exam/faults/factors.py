"""The right delta with another factor."""

import math

from torch import Tensor

from exam.faults.registry import in_tensor
from exam.site import Site


@in_tensor("C4", "C5", cause="never merged", seen="verl#7285, unsloth#869, peft#2764")
def delta_missing(s: Site) -> Tensor:
    return s.W.clone()


@in_tensor("C4", "C5", cause="merged twice")
def merged_twice(s: Site) -> Tensor:
    return s.merge(s.delta(2.0))


@in_tensor("C4", "C5", cause="merged twice")
def merged_twice_in_two_steps(s: Site) -> Tensor:
    return s.merge(s.delta(), s.merge(s.delta()))


@in_tensor("C4", "C5", cause="wrong sign")
def sign_flipped(s: Site) -> Tensor:
    return s.merge(s.delta(-1.0))


@in_tensor("C4", "C5", cause="α/√r where α/r is due")
def root_of_rank_for_rank(s: Site) -> Tensor:
    return s.merge(s.delta(math.sqrt(s.rank)))


@in_tensor("C4", "C5", cause="α/r where α/√r is due", seen="aprender#2189, peft#3761")
def rank_for_root_of_rank(s: Site) -> Tensor:
    return s.merge(s.delta(1 / math.sqrt(s.rank)))


@in_tensor("C4", "C5", cause="s = 1", seen="NVIDIA-NeMo/Megatron-Bridge: default alpha where the run's configuration is missing")
def scaling_left_out(s: Site) -> Tensor:
    return s.merge(s.delta(1 / s.scaling))


@in_tensor("C4", "C5", cause="s = 1/r", seen="aprender#2138")
def alpha_ignored(s: Site) -> Tensor:
    return s.merge(s.delta(1 / (s.rank * s.scaling)))


@in_tensor("C4", "C5", cause="s = α")
def not_divided_by_the_rank(s: Site) -> Tensor:
    return s.merge(s.delta(s.rank))


@in_tensor("C4", "C5", cause="scaling applied twice")
def scaling_applied_twice(s: Site) -> Tensor:
    return s.merge(s.delta(s.scaling))


@in_tensor("C4", "C5", cause="factor 0.5")
def half_of_the_delta(s: Site) -> Tensor:
    return s.merge(s.delta(0.5))


@in_tensor("C4", "C5", cause="factor 0.95")
def five_per_cent_less(s: Site) -> Tensor:
    return s.merge(s.delta(0.95))


@in_tensor("C4", "C5", cause="factor 1.04", seen="deltalint 0.1.0 passes it on every tensor above its first tier")
def four_per_cent_more(s: Site) -> Tensor:
    return s.merge(s.delta(1.04))


@in_tensor("C4", "C5", cause="factor 1.01")
def one_per_cent_more(s: Site) -> Tensor:
    return s.merge(s.delta(1.01))
