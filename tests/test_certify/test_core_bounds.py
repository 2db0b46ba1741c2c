"""The bound: no float32 merge in any order leaves it; a delta that is five per cent off does."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from certify.bounds import Delta, bound
from certify.grid import Grid, half_ulp

DTYPES = st.sampled_from([torch.bfloat16, torch.float16, torch.float32])
EXAM = settings(derandomize=True, database=None, deadline=None, max_examples=150)


@st.composite
def settings_of_a_merge(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, float]:
    """(W, left, right, s): toy shapes, from tiny to large values, cancelling and denormal ones included."""
    rows, columns, rank = draw(st.integers(1, 12)), draw(st.integers(1, 12)), draw(st.integers(1, 16))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(DTYPES)
    size = 10.0 ** draw(st.integers(-3, 1)) if dtype is torch.float16 else 10.0 ** draw(st.sampled_from([-38, -30, -3, -1, 0, 1]))
    left = torch.randn(rows, rank, generator=generator) * 10.0 ** draw(st.integers(-4, 0))
    right = torch.randn(rank, columns, generator=generator) * draw(st.sampled_from([1.0, 1e-2, 1e-20]))
    s = draw(st.sampled_from([0.1, 1.0, 2.0, 5.656854, 32.0, -1.5]))
    W = torch.randn(rows, columns, generator=generator) * size
    if draw(st.booleans()):
        W = W - s * (left @ right)  # what is left after cancellation is mostly error
    return W.to(dtype), left, right, s


def orders(W: Tensor, left: Tensor, right: Tensor, s: float) -> dict[str, Tensor]:
    """Right float32 merges that differ in their last bits, and a float64 one; none is rounded to the stored dtype yet."""
    w, rank = W.float(), left.shape[1]
    first = w.clone()
    for k in range(rank):
        first = first + torch.outer(left[:, k] * s, right[k])
    last = torch.zeros_like(w)
    for k in reversed(range(rank)):
        last = last + torch.outer(left[:, k], right[k])
    return {
        "product, scaling, sum": w + (left @ right) * s,
        "scaling inside": w + (left * s) @ right,
        "addmm": torch.addmm(w, left, right, alpha=s),
        "W first, rank by rank": first,
        "ranks backwards": w + last * s,
        "float64": W.double() + s * (left.double() @ right.double()),
    }


@EXAM
@given(settings_of_a_merge(), DTYPES, st.sampled_from(["nearest", "peft", "faithful"]))
def test_no_right_merge_leaves_the_bound(case: tuple[Tensor, Tensor, Tensor, float], stored: torch.dtype, criterion: str) -> None:
    W, left, right, s = case
    allowed = bound(W, [Delta(left, right, s, torch.float32)], Grid(stored), criterion)
    for how, merged in orders(W, left, right, s).items():
        kept = merged.to(stored)
        finite = torch.isfinite(kept)
        assert bool(allowed.holds(kept.double())[finite].all()), how


@EXAM
@given(st.integers(0, 10_000), DTYPES, st.sampled_from(["nearest", "peft", "faithful"]))
def test_a_delta_five_per_cent_off_leaves_the_bound(seed: int, dtype: torch.dtype, criterion: str) -> None:
    torch.manual_seed(seed)
    W, left, right = (torch.randn(16, 16) * 0.02).to(dtype), torch.randn(16, 4) * 0.05, torch.randn(4, 16) * 0.2
    wrong = (W.float() + 1.05 * 2.0 * (left @ right)).to(dtype)
    assert not bool(bound(W, [Delta(left, right, 2.0, torch.float32)], Grid(dtype), criterion).holds(wrong.double()).all())


@EXAM
@given(settings_of_a_merge(), st.sampled_from([torch.bfloat16, torch.float16]), st.integers(1, 3))
def test_peft_paths_stay_in_the_peft_bound(case: tuple[Tensor, Tensor, Tensor, float], adapter: torch.dtype, adapters: int) -> None:
    W, left, right, s = case
    left, right = left.to(adapter), right.to(adapter)
    allowed = bound(W, [Delta(left.float(), right.float(), s, adapter)] * adapters, Grid(W.dtype), "peft")
    delta = (left.float() @ right.float()) * s
    paths = {
        "default": delta,
        "safe_merge": delta.to(W.dtype),
        "half-precision adapter": delta.to(adapter),
        "half-precision product": (left.float() @ right.float()).to(adapter) * s,
    }
    for how, added in paths.items():
        merged = W.clone()
        for _ in range(adapters):
            merged += added
        finite = torch.isfinite(merged)
        assert bool(allowed.holds(merged.double())[finite].all()), how


def test_one_bit_off_a_clear_rounding_is_seen() -> None:
    torch.manual_seed(0)
    W, left, right = torch.randn(64, 64).bfloat16(), torch.randn(64, 8) * 0.01, torch.randn(8, 64)
    right_one = (W.double() + left.double() @ right.double()).bfloat16()
    off = (right_one.view(torch.int16) ^ 1).view(torch.bfloat16)
    allowed = bound(W, [Delta(left, right, 1.0, torch.float32)], Grid(torch.bfloat16), "nearest")
    assert float(allowed.holds(off.double()).double().mean()) < 1e-2


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("criterion", ["nearest", "peft", "faithful"])
def test_nan_and_infinity_are_never_right(value: float, criterion: str) -> None:
    huge = torch.full((2, 2), 3.3e38).bfloat16()  # W + Δ overflows: infinity is the correct rounding, and refused all the same
    allowed = bound(huge, [Delta(torch.full((2, 1), 3e38), torch.ones(1, 2), 1.0, torch.float32)], Grid(torch.bfloat16), criterion)
    assert not bool(allowed.holds(torch.full((2, 2), value, dtype=torch.float64)).any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_ulp_is_half_the_distance_to_the_next_value(dtype: torch.dtype) -> None:
    value = torch.tensor([1.0, 1.5, 2.0, 0.02, 1e-3]).to(dtype)
    step = torch.nextafter(value, torch.full_like(value, torch.inf)).double() - value.double()
    assert torch.equal(half_ulp(value.double(), dtype), step / 2)


def test_half_ulp_is_never_zero_and_powers_of_two_are_lower_ends() -> None:
    assert float(half_ulp(torch.zeros(1), torch.float32)) > 0
    assert float(half_ulp(torch.tensor([1.0 - 2**-8]).double(), torch.bfloat16)) == 2.0**-9


def test_faithful_allows_both_neighbours_and_no_third() -> None:
    W = torch.ones(1, 1).bfloat16()
    allowed = bound(W, [Delta(torch.full((1, 1), 2.0**-9), torch.ones(1, 1), 1.0, torch.float32)], Grid(torch.bfloat16), "faithful")
    below, above, third = 1.0, 1.0 + 2.0**-7, 1.0 + 2.0**-6
    held = [bool(allowed.holds(torch.full((1, 1), value, dtype=torch.float64)).item()) for value in (below, above, third)]
    assert held == [True, True, False]
