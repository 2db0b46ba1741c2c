"""What a base alone predicts about a small change: how many values move, how much survives, and how large the change was."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from certify.inputs.checkpoint import open_checkpoint
from certify.inputs.stored import Stored
from certify.screen.rank import RANKS, sampled_rank
from certify.screen.share import Gaps
from certify.screen.tensor import Touch, look

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SIZES = (3e-1, 1e-2, 1e-3, 1e-4, 1e-5)


def stored(tensor: Tensor, directory: Path) -> Stored:
    directory.mkdir(exist_ok=True)
    save_file({"x": tensor.contiguous()}, directory / "model.safetensors")
    return open_checkpoint(directory).tensors["x"]


def pair(W: Tensor, M: Tensor, room: Path) -> tuple[Stored, Stored]:
    return stored(W, room / "base"), stored(M, room / "merged")


def weights(dtype: torch.dtype, rows: int = 512, columns: int = 512) -> Tensor:
    torch.manual_seed(2)
    return (torch.randn(rows, columns) * 0.02).to(dtype)


def low_rank(rho: float, W: Tensor, rank: int = 16) -> Tensor:
    torch.manual_seed(3)
    delta = torch.randn(W.shape[0], rank, dtype=torch.float64) @ torch.randn(rank, W.shape[1], dtype=torch.float64)
    return delta * (rho * W.double().norm() / delta.norm())


def seen(W: Tensor, M: Tensor, room: Path) -> Touch:
    touch = look(*pair(W, M, room))
    assert touch is not None
    return touch


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rho", SIZES)
def test_share_and_retention_of_a_normal_change(dtype: torch.dtype, rho: float) -> None:
    """The prediction is exact for a normal change, but for the half gaps below powers of two (at most 1 element in 128)."""
    W = weights(dtype)
    torch.manual_seed(4)
    sigma = rho * float(W.double().square().mean().sqrt())
    delta = torch.randn(W.shape, dtype=torch.float64) * sigma
    added = (W.double() + delta).to(dtype).double() - W.double()
    gaps = Gaps()
    gaps.fold(W.float(), dtype)
    share = float((added != 0).double().mean())
    chance = 4 * (share * (1 - share) / W.numel()) ** 0.5
    assert gaps.share(sigma) == pytest.approx(share, abs=share / 128 + chance + 1e-9)
    kept = (added * delta) / delta.square().mean()
    chance = 4 * float(kept.std()) / W.numel() ** 0.5
    assert gaps.retention(sigma) == pytest.approx(float(kept.mean()), abs=1 / 128 + chance)
    chance = 4 * float(added.square().std()) / W.numel() ** 0.5
    assert gaps.energy(sigma) == pytest.approx(float(added.square().mean()), abs=float(added.square().mean()) / 128 + chance)


@pytest.mark.parametrize("t", [0.01, 0.3, 0.499, 0.5, 1.0, 3.0, 10.0])
def test_the_sums_are_the_integrals(t: float) -> None:
    """Against a numerical integral of the definition, one gap of size t·σ."""
    gaps, sigma = Gaps(), 1 / t
    gaps.fold(torch.tensor([1.5]), torch.float16)  # gap 2⁻¹⁰
    x = torch.linspace(-9, 9, 2_000_001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2)
    density /= density.sum()
    rounded = torch.round(x / t) * t
    unit = 2.0**-10 * sigma
    assert gaps.retention(unit) == pytest.approx(float((rounded * x * density).sum()), abs=1e-4 * t)
    assert gaps.energy(unit) / unit**2 == pytest.approx(float((rounded.square() * density).sum()), abs=1e-4 * t)
    assert gaps.share(unit) == pytest.approx(float(density[rounded != 0].sum()), abs=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rho", SIZES)
def test_size_and_retention_of_a_merge(dtype: torch.dtype, rho: float, tmp_path: Path) -> None:
    """From base and merged alone. B·A of rank 16 has longer tails than a normal, which costs 2 % of ρ and 0.03 of the retention."""
    W = weights(dtype)
    delta = low_rank(rho, W)
    M = (W.double() + delta).to(dtype)
    touch, added = seen(W, M, tmp_path), M.double() - W.double()
    assert touch.share == float((added != 0).double().mean())
    assert touch.rho == pytest.approx(rho, rel=0.05)
    assert touch.retention == pytest.approx(float((added * delta).sum() / delta.square().sum()), abs=0.03)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rank", "rho"), [(1, 1e-1), (4, 1e-1), (4, 1e-2), (16, 1e-1), (16, 1e-2)])
def test_sampled_rank(dtype: torch.dtype, rank: int, rho: float, tmp_path: Path) -> None:
    W = weights(dtype)
    M = (W.double() + low_rank(rho, W, rank)).to(dtype)
    found = sampled_rank(*pair(W, M, tmp_path), rho, 1.0)
    assert found.least is None
    assert found.rank is not None
    assert abs(found.rank - rank) <= 1


def test_a_full_rank_change_and_a_faint_one(tmp_path: Path) -> None:
    W = weights(torch.bfloat16)
    torch.manual_seed(5)
    full = (W.double() + torch.randn(W.shape, dtype=torch.float64) * 2e-3).bfloat16()
    assert sampled_rank(*pair(W, full, tmp_path), 0.1, 1.0).least == RANKS
    faint = (W.double() + low_rank(1e-5, W)).bfloat16()
    assert sampled_rank(*pair(W, faint, tmp_path), 1e-5, 0.01).rank is None


def test_zeros_are_on_the_finest_grid(tmp_path: Path) -> None:
    """A zero moves with any change: a base that is half zeros has half of its elements changed by a faint delta."""
    W = weights(torch.bfloat16)
    W[:, ::2] = 0
    touch = seen(W, (W.double() + low_rank(1e-5, W)).bfloat16(), tmp_path)
    assert touch.share is not None
    assert touch.share > 0.5
    assert touch.rho == pytest.approx(1e-5, rel=0.1)


def test_what_cannot_be_measured_is_not_guessed(tmp_path: Path) -> None:
    W = weights(torch.float32)
    narrowed = seen(W, (W.double() + low_rank(1e-2, W)).bfloat16(), tmp_path)
    assert narrowed.share is not None
    assert narrowed.rho is None
    assert narrowed.retention is None
    widened = seen(W.bfloat16(), (W.bfloat16().double() + low_rank(1e-4, W)).float(), tmp_path)
    assert widened.rho == pytest.approx(1e-4, rel=0.05)
    assert widened.retention == pytest.approx(1.0, abs=1e-3)
    bytes_only = seen(W.to(torch.float8_e4m3fn), (-W).to(torch.float8_e4m3fn), tmp_path)
    assert bytes_only.share is None
    assert bytes_only.touched
    assert bytes_only.rho is None
    assert look(*pair(W, W[:7], tmp_path)) is None
    assert seen(W, W, tmp_path) == Touch(W.numel(), 0.0)


def test_scalars_vectors_and_stacks(tmp_path: Path) -> None:
    for shape in ((), (1,), (300,), (3, 40, 50), (0, 7)):
        W = torch.ones(shape).bfloat16()
        touch = seen(W, W * 2, tmp_path)
        assert touch.share == (1.0 if W.numel() else 0.0)


def test_nan_and_infinity(tmp_path: Path) -> None:
    W = weights(torch.bfloat16, 300, 200)
    W[7, 7] = torch.nan
    M = W + 0.01
    M[3, 5], M[200, 100] = torch.nan, torch.inf
    touch = seen(W, M, tmp_path)
    assert touch.not_finite == 2
    assert touch.rho is not None
    assert Touch.of(touch.figures()) == touch
    assert Touch.of({"beyond": 3}) is None


def test_memory_is_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No read is larger than a block, whatever the tensor."""
    from certify.inputs import stored as reader
    from certify.screen import tensor

    W = weights(torch.bfloat16, 600, 700)
    base, merged = pair(W, W + 0.01, tmp_path)
    monkeypatch.setattr(tensor, "BLOCK", 10_000)
    monkeypatch.setattr(reader, "BLOCK_BYTES", 20_000)
    sizes: list[int] = []
    read = reader._Opened.read

    def counted(self: reader._Opened, start: int, count: int) -> bytes:
        sizes.append(count)
        return read(self, start, count)

    monkeypatch.setattr(reader._Opened, "read", counted)
    assert look(base, merged) is not None
    assert len(sizes) > 2 * 42
    assert max(sizes) <= 20_000
