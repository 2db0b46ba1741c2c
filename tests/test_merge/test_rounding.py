"""Rounding to neighbours: which ones they are, that no rule leaves them, and how much of a small delta each keeps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import merge
from merge.rounding import Floats, Space, Span, draws, faithful, stochastic
from merge.rounding.span import basis

DTYPES = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float32)


class Twice:
    """Scales that are all the same number."""

    def multiply(self, exact: torch.Tensor, _start: int) -> None:
        exact.mul_(0.37)

    def divide(self, exact: torch.Tensor, _start: int) -> None:
        exact.div_(0.37)


def numbers(seed: int, rows: int = 4, columns: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 10.0 ** torch.randint(-6, 2, (rows, columns), generator=generator)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), dtype=st.sampled_from(DTYPES), scaled=st.booleans())
def test_a_bracket_holds_its_number_and_grid_points_stay(seed: int, dtype: torch.dtype, scaled: bool) -> None:
    floats = Floats(dtype, Twice() if scaled and dtype == torch.float8_e4m3fn else None)
    exact = numbers(seed)
    low, high = (block.clone() for block in floats.bracket(exact, 0, Space()))
    assert bool((low <= exact).all())
    assert bool((exact <= high).all())
    for point in (low, high):
        assert all(torch.equal(block, point) for block in floats.bracket(point.clone(), 0, Space()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_has_no_place_stays_without_one(dtype: torch.dtype, bad: float) -> None:
    low, high = Floats(dtype).bracket(torch.tensor([[1.0, bad]]), 0, Space())
    assert not bool(low[0, 1].isfinite())
    assert not bool(high[0, 1].isfinite())


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), dtype=st.sampled_from(DTYPES[:3]))
def test_no_rule_leaves_the_two_neighbours(seed: int, dtype: torch.dtype) -> None:
    exact, (Q, _) = numbers(seed), basis(numbers(seed + 1, 3))
    low, high = Floats(dtype).bracket(exact, 0, space := Space())
    below, above = low.clone(), high.clone()
    by_chance = stochastic(exact, low, high, draws(seed, "w", 0, exact.numel()).view(exact.shape))
    faithful(exact, low, high, Span(Q), exact @ Q, 8, space)
    for chosen in (by_chance, low):
        assert bool(((chosen == below) | ((chosen - above).abs() <= 1e-6 * above.abs())).all())


def test_faithful_keeps_what_nearest_loses() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (torch.randn(64, 1024, generator=generator) * 0.02).bfloat16().float()
    a, b = torch.randn(8, 1024, generator=generator), torch.randn(64, 8, generator=generator)
    delta = b @ a * (1e-3 * weight.norm() / (b @ a).norm())
    exact, (Q, _) = weight + delta, basis(a)
    near = exact.bfloat16().float() - exact
    low, high = Floats(torch.bfloat16).bracket(exact, 0, space := Space())
    faithful(exact, low, high, Span(Q), delta @ Q, 8, space)
    error = low - exact
    coherent = float((error @ Q).norm() / delta.norm())
    kept = 1 + float((error * delta).sum() / delta.square().sum())
    assert 1 + float((near * delta).sum() / delta.square().sum()) < 0.7
    assert abs(kept - 1) <= coherent + 1e-5  # Cauchy, Schwarz
    assert coherent < 0.06


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_basis_knows_the_directions_that_it_was_made_of(rank: int) -> None:
    directions = numbers(0, rank, 64)
    Q, coordinates = basis(torch.cat([directions, 2 * directions]))
    assert Q.shape == (64, rank)
    torch.testing.assert_close(Q.T @ Q, torch.eye(rank), atol=1e-6, rtol=0)
    size = directions.norm(dim=1, keepdim=True)
    torch.testing.assert_close(coordinates[:rank] @ Q.T / size, directions / size, atol=1e-6, rtol=0)


def test_a_draw_belongs_to_its_element() -> None:
    whole = draws(3, "w", 0, 1000)
    assert all(torch.equal(draws(3, "w", first, 50), whole[first : first + 50]) for first in (0, 1, 7, 8, 333))
    assert not torch.equal(draws(4, "w", 0, 50), whole[:50])
    assert not torch.equal(draws(3, "v", 0, 50), whole[:50])


@pytest.mark.parametrize("rule", ["faithful", "stochastic"])
def test_the_bytes_do_not_depend_on_the_workers(rule: str, llama: Any, tmp_path: Path) -> None:
    one = merge.merge(llama.base, llama.adapter, tmp_path / "one", rounding=rule, workers=1)
    five = merge.merge(llama.base, llama.adapter, tmp_path / "five", rounding=rule, workers=5)
    assert (tmp_path / "one" / "merge-manifest.json").read_bytes() == (tmp_path / "five" / "merge-manifest.json").read_bytes()
    assert one.fidelity == five.fidelity
    for path in (tmp_path / "one").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "five" / path.name).read_bytes()
