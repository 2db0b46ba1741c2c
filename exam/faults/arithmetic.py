"""The right delta by another arithmetic than one float32 sum rounded once. Where the result is one of the right ones, nothing is wrong."""

import torch
from torch import Tensor

from exam.faults.registry import in_tensor
from exam.site import Site


def exact(s: Site) -> Tensor:
    return s.W.double() + s.scaling * (s.B.double() @ s.A.double())


def other_neighbour(s: Site) -> Tensor:
    """The grid neighbour of W + Δ that is not the nearest one."""
    near = exact(s).to(s.dtype)
    towards = torch.where(near.double() > exact(s), -torch.inf, torch.inf).to(s.dtype)
    return torch.nextafter(near, towards)


def block_scaled(values: Tensor, levels: Tensor, group: int = 32) -> Tensor:
    """Every group of values on these levels times its largest magnitude."""
    flat = values.float().reshape(-1, group)
    scale = flat.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30)
    middle = (levels[1:] + levels[:-1]) / 2
    return (levels[torch.bucketize(flat / scale, middle)] * scale).view(values.shape)


def by_fp8(values: Tensor, grid: torch.dtype) -> Tensor:
    scale = values.float().abs().max() / torch.finfo(grid).max
    return (values.float() / scale).to(grid).float() * scale


FOUR_BITS = torch.tensor(  # NF4: quantiles of a normal distribution, Dettmers et al. 2023, arXiv:2305.14314, appendix E
    [-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1.0]
)
EIGHT_BITS = torch.arange(-127, 128) / 127


@in_tensor("C4")
def rounded_towards_zero(s: Site) -> Tensor:
    near = exact(s).to(s.dtype)
    return torch.where(near.double().abs() > exact(s).abs(), torch.nextafter(near, torch.zeros_like(near)), near)


@in_tensor("C4")
def rounded_stochastically(s: Site) -> Tensor:
    near, other = exact(s).to(s.dtype), other_neighbour(s)
    gap = (other.double() - near.double()).abs()
    return torch.where(torch.rand(gap.shape) < (exact(s) - near.double()).abs() / gap, other, near)


@in_tensor("C4", cause="safe_merge")
def delta_rounded_before_it_was_added(s: Site) -> Tensor:
    """PEFT's safe_merge, judged as one rounding."""
    return s.merge(s.delta().to(s.dtype))


@in_tensor("C4", cause="cast to bf16")
def factors_cast_to_bf16(s: Site) -> Tensor:
    return s.merge(s.scaling * (s.B.bfloat16().float() @ s.A.bfloat16().float()))


@in_tensor("C4")
def factors_cast_to_fp8(s: Site) -> Tensor:
    return s.merge(s.scaling * (by_fp8(s.B, torch.float8_e4m3fn) @ by_fp8(s.A, torch.float8_e4m3fn)))


@in_tensor("C4")
def product_rounded_to_ten_bits(s: Site) -> Tensor:
    """A TF32 matrix product: the factors keep 10 bits behind the leading one, the sums are float32."""

    def shortened(values: Tensor) -> Tensor:
        return ((values.view(torch.int32) + 0x0FFF + ((values.view(torch.int32) >> 13) & 1)) & ~0x1FFF).view(torch.float32)

    return s.merge(s.scaling * (shortened(s.B.contiguous()) @ shortened(s.A.contiguous())))


@in_tensor("C4", cause="by way of", seen="llama.cpp#10049, MiniCPM-V#502")
def by_way_of_another_dtype(s: Site) -> Tensor:
    between = torch.bfloat16 if s.dtype == torch.float16 else torch.float16
    return (s.W.float() + s.delta()).to(between).to(s.dtype)


@in_tensor("C4")
def base_by_way_of_another_dtype(s: Site) -> Tensor:
    between = torch.bfloat16 if s.dtype == torch.float16 else torch.float16
    return s.merge(s.delta(), s.W.to(between))


@in_tensor("C4")
def one_rank_after_another_rounded_each_time(s: Site) -> Tensor:
    out = s.W
    for k in range(s.rank):
        out = s.merge(s.scaling * torch.outer(s.B[:, k], s.A[k]), out)
    return out


@in_tensor("C4")
def everything_computed_in_the_stored_dtype(s: Site) -> Tensor:
    return s.W + (s.B.to(s.dtype) @ s.A.to(s.dtype)) * torch.tensor(s.scaling).to(s.dtype)


@in_tensor("C4", "C5", cause="re-quantised")
def base_by_way_of_fp8(s: Site) -> Tensor:
    return s.merge(s.delta(), by_fp8(s.W, torch.float8_e4m3fn))


@in_tensor("C4", "C5", seen="zoo#810, peft#1043, peft#2321: QLoRA merged onto the dequantised base")
def base_by_way_of_four_bits(s: Site) -> Tensor:
    return s.merge(s.delta(), block_scaled(s.W, FOUR_BITS))


@in_tensor("C4")
def base_by_way_of_eight_bit_integers(s: Site) -> Tensor:
    return s.merge(s.delta(), block_scaled(s.W, EIGHT_BITS))


@in_tensor("C4", "C5", seen="axolotl#3822, mlx-tune#15")
def quantised_again_to_fp8(s: Site) -> Tensor:
    return by_fp8(s.W.float() + s.delta(), torch.float8_e4m3fn).to(s.dtype)


@in_tensor("C4", "C5")
def quantised_again_to_four_bits(s: Site) -> Tensor:
    return block_scaled(s.W.float() + s.delta(), FOUR_BITS).to(s.dtype)


@in_tensor("C4", cause="base revision")
def another_revision_of_the_base(s: Site) -> Tensor:
    """One element in a hundred is one step larger."""
    chosen = torch.rand(s.W.shape) < 0.01
    return s.merge(s.delta(), torch.where(chosen, torch.nextafter(s.W, torch.full_like(s.W, torch.inf)), s.W))
