"""Damage to a tensor that was right: adapted, replaced or carried, it must be found."""

import torch
from torch import Tensor

from exam.faults.registry import in_tensor
from exam.site import Role, Site

ALL: tuple[Role, ...] = ("adapted", "silent", "carried", "replaced")
BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def altered(s: Site, place: int, value: float) -> Tensor:
    merged = s.sound.clone()
    merged.view(-1)[place] = value
    return merged


def flipped(s: Site, bit: int, place: int | None = None) -> Tensor:
    merged = s.sound.clone()
    at = merged.numel() // 3 if place is None else place
    merged.view(-1).view(BITS[s.dtype])[at] ^= 1 << bit
    return merged


def largest(s: Site) -> int:
    return int(s.sound.abs().argmax())


@in_tensor(roles=ALL, cause="isolated")
def one_sign_flipped(s: Site) -> Tensor:
    return altered(s, largest(s), -float(s.sound.view(-1)[largest(s)]))


@in_tensor(roles=ALL, cause="isolated")
def one_bit_of_an_exponent_flipped(s: Site) -> Tensor:
    return flipped(s, {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}[s.dtype])


@in_tensor(roles=ALL)
def one_bit_of_a_significand_flipped(s: Site) -> Tensor:
    return flipped(s, {torch.bfloat16: 4, torch.float16: 7, torch.float32: 20}[s.dtype])


@in_tensor(roles=ALL)
def lowest_bit_flipped(s: Site) -> Tensor:
    return flipped(s, 0)


@in_tensor(roles=ALL)
def element_nudged_where_the_merge_changes_nothing(s: Site) -> Tensor | None:
    """The correct merge leaves this element as it is, and so it must stay."""
    same = (s.sound == s.W).view(-1).nonzero().view(-1)
    return flipped(s, 0, int(same[len(same) // 2])) if len(same) else None


@in_tensor(roles=ALL, cause="not finite")
def one_nan(s: Site) -> Tensor:
    return altered(s, 5, torch.nan)


@in_tensor(roles=ALL, cause="not finite")
def one_infinity(s: Site) -> Tensor:
    return altered(s, 5, -torch.inf)


@in_tensor(roles=ALL, cause="not finite")
def everything_nan(s: Site) -> Tensor:
    return torch.full_like(s.sound, torch.nan)


@in_tensor(roles=ALL, seen="peft#894, peft#868: offloaded weights saved empty")
def everything_zero(s: Site) -> Tensor:
    return torch.zeros_like(s.sound)


@in_tensor(roles=ALL)
def everything_one_constant(s: Site) -> Tensor:
    return torch.full_like(s.sound, 0.0625)


@in_tensor(roles=ALL, seen="zoo#969: every tensor initialised anew")
def everything_random(s: Site) -> Tensor:
    return (torch.randn(s.W.shape) * 0.05).to(s.dtype)


@in_tensor(roles=ALL)
def last_elements_zero(s: Site) -> Tensor:
    """A write that did not reach its end."""
    merged = s.sound.clone()
    merged.view(-1)[-4:] = 0
    return merged


@in_tensor(roles=ALL)
def two_rows_swapped(s: Site) -> Tensor:
    merged = s.sound.clone()
    merged[[0, 1]] = merged[[1, 0]]
    return merged


@in_tensor(roles=ALL)
def shifted_by_one_element(s: Site) -> Tensor:
    return s.sound.view(-1).roll(1).view(s.sound.shape)


@in_tensor(roles=ALL)
def bytes_in_the_other_order(s: Site) -> Tensor:
    """Big-endian."""
    raw = s.sound.contiguous().view(-1).view(torch.uint8).view(-1, s.dtype.itemsize)
    return raw.flip(1).contiguous().view(-1).view(s.dtype).view(s.sound.shape)


@in_tensor(roles=ALL)
def one_part_in_a_thousand_larger(s: Site) -> Tensor:
    return (s.sound.float() * 1.001).to(s.dtype)


@in_tensor(roles=("carried",), seen="swift#841, autotrain#796")
def carried_by_way_of_another_dtype(s: Site) -> Tensor:
    between = torch.bfloat16 if s.dtype == torch.float16 else torch.float16
    return s.W.to(between).to(s.dtype)


@in_tensor(roles=("carried",))
def carried_by_way_of_fp8(s: Site) -> Tensor:
    return s.W.to(torch.float8_e4m3fn).to(s.dtype)


@in_tensor(roles=("carried",))
def zero_with_the_other_sign(s: Site) -> Tensor:
    """The two zeros are equal as numbers; they are not the same bytes."""
    return altered(s, 0, -0.0)  # every carried site holds a 0.0 there


@in_tensor(roles=("carried",))
def another_tensor_in_its_place(s: Site) -> Tensor:
    return s.other.clone()


@in_tensor(roles=("carried",))
def a_delta_that_nobody_asked_for(s: Site) -> Tensor:
    return (s.W.float() + 0.01 * s.W.float().std() * torch.randn(s.W.shape)).to(s.dtype)


@in_tensor(roles=("replaced",), seen="qlora-pipe, tinker-cookbook: modules_to_save ignored")
def replaced_tensor_left_as_in_the_base(s: Site) -> Tensor:
    return s.W.clone()


@in_tensor(roles=("replaced",))
def replacement_added_to_the_base(s: Site) -> Tensor:
    return (s.W.float() + s.sound.float()).to(s.dtype)


@in_tensor(roles=("replaced",))
def replacement_averaged_with_the_base(s: Site) -> Tensor:
    return ((s.W.float() + s.sound.float()) / 2).to(s.dtype)
