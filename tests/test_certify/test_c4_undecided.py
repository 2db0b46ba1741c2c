"""C4 where float32's own noise is as large as the delta: what is W + Δ passes, what could be anything is undecided, and never certified."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import certify
from certify.bounds import Delta
from certify.checks.c4_merged import TOLD, Tally
from certify.expect.target import Block
from certify.fidelity import Fidelity
from certify.finding import Finding, Outcome
from certify.grid import Grid
from certify.verdict import Verdict, decide
from tests.test_certify.front_checkpoint import TOUCHED, Question, make

SHAPE, RANK = (48, 64), 4


def judged(W: Tensor, merged: Tensor, delta: Delta, criterion: str = "nearest") -> str:
    tally = Tally(SHAPE, Fidelity(None, flipped=False, noisy=False))
    tally.judge(Block(0, W, (delta,)), merged, Grid(merged.dtype), criterion)
    return "failed" if tally.beyond else tally.within("", {}).outcome.value


def cancelling(factor: float, dtype: torch.dtype) -> tuple[Tensor, Delta]:
    """W, and two pairs of ranks whose products are `factor` times as large as their sum."""
    chance = torch.Generator().manual_seed(3)
    A, B = torch.randn(RANK, SHAPE[1], generator=chance) * 0.05, torch.randn(SHAPE[0], RANK, generator=chance) * 0.05
    for one, other in ((0, 1), (2, 3)):
        A[other], B[:, other] = A[one] + A[other] / factor, -B[:, one] + B[:, other] / factor
    grown = factor**0.5
    W = (torch.randn(SHAPE, generator=chance) * 0.02).to(dtype)
    return W, Delta(B * grown, A * grown, 2.0, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("factor", [1.0, 1e2, 1e4, 1e6, 1e8])
def test_however_much_ranks_cancel_an_exact_merge_passes_and_nothing_else_does(factor: float, dtype: torch.dtype) -> None:
    W, delta = cancelling(factor, dtype)
    exact = delta.double().value()
    assert judged(W, (W.double() + exact).to(dtype), delta) == "passed"
    for share in (0.0, 0.5, 0.95):
        assert judged(W, (W.double() + share * exact).to(dtype), delta) != "passed", share
    assert judged(W, torch.full_like(W, 0.7), delta) != "passed"


@pytest.mark.parametrize("criterion", ["nearest", "peft", "faithful"])
def test_where_the_interval_holds_the_base_the_base_is_undecided(criterion: str) -> None:
    W, delta = cancelling(1e8, torch.bfloat16)
    assert judged(W, W, delta, criterion) == "undecided"
    assert judged(W, (W.double() + delta.double().value()).bfloat16(), delta, criterion) == "passed"


def test_a_delta_in_the_last_bits_of_float32_is_undecided_where_it_is_missing() -> None:
    """‖Δ‖/‖W‖ = 3e-7 at rank 64: sixty-four additions to W may lose it all."""
    chance = torch.Generator().manual_seed(5)
    W = torch.randn(SHAPE, generator=chance).abs() + 1
    B, A = torch.randn(SHAPE[0], 64, generator=chance), torch.randn(64, SHAPE[1], generator=chance)
    delta = Delta(B, A, 3e-7 * float(W.norm() / (B @ A).norm()), torch.float32)
    assert judged(W, W, delta) == "undecided"
    assert judged(W, (W.double() + delta.double().value()).float(), delta) == "passed"


def test_a_right_rounding_that_keeps_nothing_is_no_doubt() -> None:
    """bf16 swallows a delta of 1e-5: the base is W + Δ, rounded; whether that will do is for C8 to say."""
    chance = torch.Generator().manual_seed(6)
    W = (torch.randn(SHAPE, generator=chance).abs() + 1).bfloat16()
    B, A = torch.randn(SHAPE[0], RANK, generator=chance), torch.randn(RANK, SHAPE[1], generator=chance)
    assert judged(W, W, Delta(B, A, 1e-6, torch.float32)) == "passed"


def hidden(flipped: bool) -> tuple[Tensor, Delta, tuple[slice | int, slice | int]]:
    """A tall matrix with one row whose ranks cancel, or a wide one with such a column, and where that lies."""
    chance = torch.Generator().manual_seed(7)
    left, right = torch.randn(4096, RANK, generator=chance) * 0.05, torch.randn(RANK, 64, generator=chance) * 0.05
    right[1] = -right[0] + right[1] * 1e-7
    left[:, 1] = 0
    left[9, :2] = left[9, 0] * 1e7
    W = torch.randn(4096, 64, generator=chance) * 0.02
    if flipped:
        return W.T.contiguous(), Delta(right.T.contiguous(), left.T.contiguous(), 2.0, torch.float32), (slice(None), 9)
    return W, Delta(left, right, 2.0, torch.float32), (9, slice(None))


@pytest.mark.parametrize("flipped", [False, True])
def test_a_row_or_column_that_lost_its_delta_does_not_hide_among_the_others(flipped: bool) -> None:
    """Its interval holds the base, and against the delta of the whole tensor it is too little to be seen."""
    W, delta, line = hidden(flipped)
    exact = delta.double().value()
    lost = exact.clone()
    lost[line] = 0
    for change, outcome in ((exact, Outcome.PASSED), (lost, Outcome.UNDECIDED)):
        tally = Tally((W.shape[0], W.shape[1]), Fidelity(None, flipped=False, noisy=False))
        tally.judge(Block(0, W, (delta,)), (W.double() + change).float(), Grid(torch.float32), "nearest")
        assert not tally.beyond
        assert tally.unexplained <= TOLD**2 * tally.due
        assert tally.within("", {}).outcome is outcome


def test_rows_of_a_faint_delta_are_no_doubt_however_it_is_added_up() -> None:
    """Rank after rank onto W, each sum rounded to float32: of the faintest rows nothing is left, and no product's noise explains it."""
    chance = torch.Generator().manual_seed(9)
    W, A = torch.randn(SHAPE, generator=chance), torch.randn(RANK, SHAPE[1], generator=chance)
    B = torch.randn(SHAPE[0], RANK, generator=chance) * torch.logspace(-10, 0, SHAPE[0])[:, None]
    merged = W
    for rank in range(RANK):
        merged = merged + torch.outer(B[:, rank], A[rank])
    assert judged(W, merged, Delta(B, A, 1.0, torch.float32)) == "passed"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.3, 1e-2, 1e-4, 1e-6])
def test_a_rounding_in_one_direction_is_refused(size: float, dtype: torch.dtype) -> None:
    """Towards zero, down or up: half of the elements are another value than the nearest one."""
    chance = torch.Generator().manual_seed(8)
    W = (torch.randn(SHAPE, generator=chance) * 0.02).to(dtype)
    B, A = torch.randn(SHAPE[0], 16, generator=chance), torch.randn(16, SHAPE[1], generator=chance)
    delta, grid = Delta(B, A, size * float(W.float().norm() / (B @ A).norm()), torch.float32), Grid(dtype)
    v = W.double() + delta.double().value()
    for rounded in (grid.down(v), grid.up(v), torch.where(v > 0, grid.down(v), grid.up(v))):
        tally = Tally(SHAPE, Fidelity(None, flipped=False, noisy=False))
        tally.judge(Block(0, W, (delta,)), rounded.to(dtype), grid, "nearest")
        assert tally.beyond > 0.4 * W.numel()


def without_its_sum(room: Path) -> Question:
    """A question whose adapter cancels in every bit, so that float32 leaves noise; the merge holds nonsense."""
    asked = make(room)
    file = asked.adapter / "adapter_model.safetensors"
    factors = load_file(file)
    for name, factor in factors.items():
        factors[name] = 1e9 * torch.cat([factor[:2], factor[:2]]) if "lora_A" in name else torch.cat([factor[:, :2], -factor[:, :2]], dim=1)
    save_file(factors, file)
    shard = next(path for path in asked.merged.glob("*.safetensors") if TOUCHED in load_file(path))
    save_file(load_file(shard) | {TOUCHED: torch.full((16, 16), 0.001).bfloat16()}, shard, metadata={"format": "pt"})
    return asked


def test_nonsense_inside_the_noise_is_incomplete_and_told(tmp_path: Path) -> None:
    asked = without_its_sum(tmp_path)
    certificate = certify.judge(asked.base, asked.adapter, asked.merged, level="weights")
    assert (certificate.verdict, certificate.exit_code) == (Verdict.INCOMPLETE, 10), certificate.reason
    told = {finding.code: finding for finding in certificate.findings if finding.subject == TOUCHED}
    assert told["C4"].outcome is Outcome.UNDECIDED
    assert told["C4"].sentence.endswith("merge in float64")
    assert not [finding for finding in certificate.findings if finding.code == "C8" and finding.outcome is Outcome.FAILED]


def test_nobody_else_settles_what_c4_or_c8_cannot_tell() -> None:
    """Neither a C4 that passed elsewhere nor a declared difference of the same tensor."""
    terms = {"run": 2, "expected": 2, "only": None, "crashed": None}
    passed = Finding("C4", "a", Outcome.PASSED)
    for code in ("C4", "C8"):
        blind = Finding(code, "a", Outcome.UNDECIDED, "nobody can tell")
        verdict, reason = decide([passed, blind] if code == "C8" else [blind], **terms)  # type: ignore[arg-type]
        assert (verdict, reason) == (Verdict.INCOMPLETE, f"{code} a: nobody can tell.")
