"""A slab made ready: whichever way a weight is stored, the vectors that an adapter reads are rounded together; what is kept is measured."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import merge
from merge import encodings, fidelity, planner, storing, subspace
from merge.arithmetic import Delta
from merge.encodings import BlockScales, Grid
from merge.proxies import make_adapter, make_checkpoint
from merge.rounding import Space
from merge.runners import inputs
from merge.storing import Rule, store
from merge.subspace import Aim
from tests import reference

ROWS, COLUMNS, BLOCK = 96, 160, 32
DTYPES = {"BF16": torch.bfloat16, encodings.CODES: torch.float8_e4m3fn}


def case(dtype: str) -> tuple[Grid, torch.Tensor, Delta]:
    """A grid, a weight that lies on it, and a delta of a hundredth."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS, generator=generator) * torch.rand(ROWS // BLOCK, 1, generator=generator).repeat_interleave(BLOCK, 0)
    scales = None
    if dtype == encodings.CODES:
        largest = weight.view(ROWS // BLOCK, BLOCK, COLUMNS // BLOCK, BLOCK).abs().amax((1, 3))
        scales = BlockScales(largest / 448, BLOCK, BLOCK, ROWS)
    grid, stored = Grid(encodings.named(dtype), scales), torch.empty(ROWS, COLUMNS, dtype=DTYPES[dtype])
    grid.encode(weight.clone(), stored, 0)
    grid.decode(stored, weight, 0)
    left, right = torch.randn(ROWS, 4, generator=generator), torch.randn(4, COLUMNS, generator=generator)
    return grid, weight, Delta(left, right, float(1e-2 * weight.norm() / (left @ right).norm()))


def turned(grid: Grid) -> Grid:
    """The same grid for the weight's transpose."""
    return Grid(grid.encoding, replace(grid.scales, values=grid.scales.values.T.contiguous(), rows=COLUMNS) if grid.scales else None)


def stored(grid: Grid, exact: torch.Tensor, aims: tuple[Aim, ...], dtype: torch.dtype, rule: Rule) -> tuple[torch.Tensor, fidelity.Sums]:
    """(the codes, what was kept)"""
    out = torch.empty(exact.shape, dtype=dtype)
    sums = store(exact.clone(), grid, out, 0, "w", aims, rule, Space())
    assert sums is not None
    return out, sums


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strip", [1 << 18, 4000])
def test_columns_are_rounded_as_rows_are(dtype: str, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "STRIP", strip)
    grid, weight, delta = case(dtype)
    exact = weight.clone()
    delta.apply(exact, 0)
    regions = subspace.regions((delta,), (ROWS, COLUMNS), 0)
    found, kept = stored(grid, exact, tuple(subspace.aims(regions, 0, exact, None)), DTYPES[dtype], Rule("faithful"))
    other = Delta(delta.right.T.contiguous(), delta.left.T.contiguous(), delta.scaling)
    regions = subspace.regions((other,), (COLUMNS, ROWS), 1)
    aims = tuple(subspace.aims(regions, 0, exact.T, None))
    expected, same = stored(turned(grid), exact.T.contiguous(), aims, DTYPES[dtype], Rule("faithful"))
    if strip == 1 << 18 or dtype == "BF16":  # else the strips of columns end with blocks, and those of rows do not
        assert torch.equal(
            found.view(torch.uint8 if grid.scales else torch.int16), expected.T.view(torch.uint8 if grid.scales else torch.int16)
        )
    assert kept.energy == pytest.approx(same.energy, rel=1e-5)
    assert abs(kept.along / kept.energy) < 0.03
    assert abs(same.along / same.energy) < 0.03


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", ["nearest", "stochastic", "faithful"])
@pytest.mark.parametrize("whole", [0, 1])
def test_the_sums_are_those_of_what_is_stored(dtype: str, rule: str, whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing, "STRIP", 4000)
    grid, weight, delta = case(dtype)
    part = replace(delta, left=delta.left[16:64].contiguous(), at=16)  # rows before and after are nobody's
    exact = weight.clone()
    part.apply(exact, 0)
    change = exact.double() - weight.double()
    regions = subspace.regions((part,), (ROWS, COLUMNS), whole if rule == "faithful" else 1)
    out, sums = stored(grid, exact, tuple(subspace.aims(regions, 0, exact, None)), DTYPES[dtype], Rule(rule))
    decoded = torch.empty(ROWS, COLUMNS)
    grid.decode(out, decoded, 0)
    assert torch.equal(decoded[:16], weight[:16])
    assert torch.equal(decoded[64:], weight[64:])
    error = decoded.double() - exact.double()
    assert sums.energy == pytest.approx(float(change.square().sum()), rel=1e-4)
    assert sums.error == pytest.approx(float(error.square().sum()), rel=1e-4)
    assert sums.along == pytest.approx(float((error * change).sum()), abs=1e-4 * sums.energy)
    directions = regions[0].span.columns.double()
    inside = error[16:64] @ directions if regions[0].whole else error[16:64].T @ directions
    assert sums.coherent == pytest.approx(float(inside.square().sum()), rel=1e-3)


def test_a_number_without_a_place_is_said() -> None:
    grid, weight, delta = case("BF16")
    exact = weight.clone()
    exact[5, 7] = torch.inf
    regions = subspace.regions((delta,), (ROWS, COLUMNS), 1)
    aims = tuple(subspace.aims(regions, 0, exact, None))
    out = torch.empty(exact.shape, dtype=torch.bfloat16)
    for rule in ("nearest", "stochastic", "faithful"):
        assert store(exact.clone(), grid, out, 0, "w", aims, Rule(rule), Space()) is None
        assert store(exact.clone(), grid, out, 0, "w", (), Rule(rule), Space()) is None


def test_under_nearest_a_sample_of_slabs_speaks_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are the same; the figures are those of the first slab, where there are eight at most, by a reference in float64."""
    base = make_checkpoint("llama", tmp_path / "base")
    adapter = make_adapter(base, tmp_path / "adapter")
    monkeypatch.setattr(planner, "MIB", 4096)
    kept = {}
    for one_in in (1, 8):
        monkeypatch.setattr(inputs, "ONE_IN", one_in)
        kept[one_in] = merge.merge(base, adapter, tmp_path / f"out-{one_in}").fidelity
    before, after = reference.weights(base), reference.weights(tmp_path / "out-8")
    assert all(torch.equal(after[name], value) for name, value in reference.weights(tmp_path / "out-1").items())
    deltas = {f"{module}.weight": delta for module, delta in reference.adapter_deltas(adapter).items()}
    assert kept[8].keys() == kept[1].keys() == deltas.keys() | {fidelity.WHOLE}
    alone = 0  # tensors of which a slab among several speaks for all
    for name, delta in deltas.items():
        height = 4096 // (2 * delta.shape[1])  # rows of a slab of four kibibytes
        alone += height < len(delta) <= 8 * height
        for one_in, rows in ((1, len(delta)), (8, height)):
            if one_in == 1 or len(delta) <= 8 * height:
                own, change = delta[:rows], (after[name].double() - before[name].double())[:rows]
                assert kept[one_in][name]["retention"] == pytest.approx(float((change * own).sum() / own.square().sum()), abs=1e-5), name
                assert kept[one_in][name]["error_energy"] == pytest.approx(float((change - own).norm() / own.norm()), rel=1e-3), name
    assert alone > 3
