"""Rounding to neighbours: which ones they are, that no rule leaves them, and how much of a small delta each keeps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import merge
from merge.rounding import Ascent, Floats, Space, Span, draws, stochastic
from merge.rounding.ascent import ENOUGH
from merge.rounding.span import basis

DTYPES = (torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float32)


class Constant:
    """Scales that are all the same number."""

    def __init__(self, scale: float) -> None:
        self._scale = scale

    def multiply(self, exact: torch.Tensor, _start: int) -> None:
        exact.mul_(self._scale)


def numbers(seed: int, rows: int = 4, columns: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator) * 10.0 ** torch.randint(-6, 2, (rows, columns), generator=generator)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), dtype=st.sampled_from(DTYPES), scaled=st.booleans())
def test_a_bracket_holds_its_number_and_grid_points_stay(seed: int, dtype: torch.dtype, scaled: bool) -> None:
    scale = 0.37 if scaled and dtype == torch.float8_e4m3fn else 1.0
    floats = Floats(dtype, Constant(scale) if scale != 1 else None)
    exact = numbers(seed)
    around = floats.bracket(exact / scale, 0, Space())
    room = exact.abs() * 2.0**-19 if scale != 1 else torch.zeros_like(exact)
    held = exact.abs() <= scale * torch.finfo(dtype).max
    assert bool((around.low * scale <= exact + room)[held].all())
    assert bool((exact <= around.low * scale + around.step + room)[held].all())
    for point in (around.low, (around.low + around.step / scale).to(dtype).float()):
        again = floats.bracket(point * scale / scale, 0, Space())
        torch.testing.assert_close(again.low, point, rtol=0, atol=0, equal_nan=True)
        assert not bool(again.step.nan_to_num().any())


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_a_bracket_is_one_step_of_the_format(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8) if dtype == torch.float8_e4m3fn else torch.arange(-(2**15), 2**15, dtype=torch.int16)
    points = codes.view(dtype).float()
    points = points[points.isfinite()].unique()
    points = points[:-1] if dtype == torch.bfloat16 and points[-1] < 0 else points
    middle = (points[:-1].double() + points[1:].double()) / 2
    around = Floats(dtype).bracket(middle.float().unsqueeze(0), 0, Space())
    assert torch.equal(around.low[0], points[:-1])
    assert torch.equal(around.low[0] + around.step[0], points[1:])
    assert torch.equal(around.past[0], around.step[0] / 2)


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_what_still_rounds_to_the_last_number_is_bracketed_by_it(dtype: torch.dtype) -> None:
    last = torch.finfo(dtype).max
    half = last * torch.finfo(dtype).eps / (4 - 2 * torch.finfo(dtype).eps) if dtype != torch.float8_e4m3fn else 16.0
    near, beyond = (torch.tensor([[sign * (last + share * half) for sign in (1, -1)]]) for share in (0.9, 1.1))
    around = Floats(dtype).bracket(near, 0, Space())
    assert around.low.tolist() == [[last, -last]]
    assert not bool(around.step.any())
    torch.testing.assert_close(around.low + around.past, near)
    assert bool(Floats(dtype).bracket(beyond, 0, Space()).low.isnan().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_has_no_place_stays_without_one(dtype: torch.dtype, bad: float) -> None:
    assert not bool(Floats(dtype).bracket(torch.tensor([[1.0, bad]]), 0, Space()).low[0, 1].isfinite())


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), dtype=st.sampled_from(DTYPES[:3]))
def test_no_rule_leaves_the_two_neighbours(seed: int, dtype: torch.dtype) -> None:
    exact, (Q, _) = numbers(seed), basis(numbers(seed + 1, 3))
    around = Floats(dtype).bracket(exact, 0, space := Space())
    low, step = around.low.clone(), around.step.clone()
    by_chance = stochastic(around.past, step, draws(seed, "w", 0, exact.numel()).view(exact.shape)).clone()
    for up in (by_chance, Ascent(8, space).choose(around.past, around.step, Span.of_columns(Q), exact @ Q)):
        assert bool(((up == 0) | (up == 1)).all())
        chosen = low + up * step
        torch.testing.assert_close(chosen.to(dtype).float(), chosen, rtol=0, atol=0, equal_nan=True)


@dataclass(frozen=True)
class Outcome:
    """One weight on its grid, rounded with a delta of a thousandth: retention, and ‖(M − t)·Q‖ / ‖Δ‖, of both rules; faithful's noise."""

    kept: tuple[float, float]
    coherent: tuple[float, float]
    noise: float
    above: float

    @classmethod
    def of(cls, dtype: torch.dtype, columns: int) -> "Outcome":
        generator = torch.Generator().manual_seed(0)
        scale = 100.0 if dtype == torch.float8_e4m3fn else 0.02
        weight = (torch.randn(64, columns, generator=generator) * scale).to(dtype).float()
        a, b = torch.randn(8, columns, generator=generator), torch.randn(64, 8, generator=generator)
        delta = b @ a * (1e-3 * weight.norm() / (b @ a).norm())
        exact, (Q, _), ascent = weight + delta, basis(a), Ascent(8, Space())
        around = Floats(dtype).bracket(exact, 0, ascent.space)
        low, step = around.low.clone(), around.step.clone()
        up = ascent.choose(around.past, around.step, Span.of_columns(Q), delta @ Q)
        assert torch.equal(around.step, step)
        errors = exact.to(dtype).float() - exact, low + up * step - exact
        kept = [1 + float((error * delta).sum() / delta.square().sum()) for error in errors]
        coherent = [float((error @ Q).norm() / delta.norm()) for error in errors]
        return cls((kept[0], kept[1]), (coherent[0], coherent[1]), float(errors[1].double().square().sum()), ascent.above)


@pytest.mark.parametrize("dtype", DTYPES[:3])
@pytest.mark.parametrize("columns", [200, 1024])
def test_faithful_keeps_what_nearest_loses(dtype: torch.dtype, columns: int) -> None:
    found = Outcome.of(dtype, columns)
    assert abs(found.kept[1] - 1) <= found.coherent[1] + 1e-5  # Cauchy, Schwarz
    assert abs(found.kept[1] - 1) < 0.02
    assert found.coherent[1] < max(found.coherent[0] / 5, ENOUGH * 1.01)


def test_flips_are_paid_for_in_the_noise_above_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    flipped = Outcome.of(torch.float8_e4m3fn, 256)
    monkeypatch.setattr("merge.rounding.ascent.FLIPS", 0)
    plain = Outcome.of(torch.float8_e4m3fn, 256)
    assert flipped.coherent[1] < 0.8 * plain.coherent[1]
    assert flipped.noise > plain.noise
    assert flipped.noise - flipped.above == pytest.approx(plain.noise - plain.above, rel=1e-5)  # the floor is the multiplier's


def test_a_row_keeps_the_part_of_its_delta_that_no_adapter_reads() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 256, generator=generator).bfloat16().float()
    delta = 2e-3 * torch.randn(32, 256, generator=generator)
    span, wanted = Span.of_columns(basis(torch.randn(4, 256, generator=generator))[0]).completed(delta)
    torch.testing.assert_close(span.carry(wanted, torch.empty(32, 256)), delta, atol=1e-8, rtol=1e-5)
    exact, ascent = weight + delta, Ascent(8, Space())
    around = Floats(torch.bfloat16).bracket(exact, 0, ascent.space)
    low, step = around.low.clone(), around.step.clone()
    error = low + ascent.choose(around.past, around.step, span, wanted) * step - exact
    near = exact.bfloat16().float() - exact
    assert float(span.project(error).norm()) < float(span.project(near).norm()) / 4
    where = torch.arange(32).unsqueeze(1)
    ones = torch.zeros(32, 256).scatter_(1, where, 1.0)
    torch.testing.assert_close(span.elements(where), span.project(ones))
    torch.testing.assert_close(span.weights().gather(1, where), span.project(ones).square().sum(1, keepdim=True))


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
