"""The scaling of an adapter whose configuration is lost follows from base, merged and its tensors, to 1e-4 or better."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from certify.__main__ import app
from certify.bounds import Delta
from certify.inputs.adapter import open_adapter
from certify.inputs.checkpoint import open_checkpoint
from certify.inputs.stored import Stored
from certify.screen.adapter import Trace, told, trace
from certify.screen.ask import ask
from certify.screen.scaling import Fit, fit, groups, reading
from certify.screen.screening import State, looked
from exam.cases import Case, build, double, edit, merge_into, rank_chunks, safe


def stored(tensor: Tensor, directory: Path) -> Stored:
    directory.mkdir(exist_ok=True)
    save_file({"x": tensor.contiguous()}, directory / "model.safetensors")
    return open_checkpoint(directory).tensors["x"]


def setting(rho: float, s: float, dtype: torch.dtype, rank: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """W, and A, B with ‖s·BA‖ = rho·‖W‖; not square."""
    torch.manual_seed(6)
    W, A, B = (torch.randn(300, 256) * 0.02).to(dtype), torch.randn(rank, 256), torch.randn(300, rank)
    return W, A, B * (rho * W.float().norm() / (abs(s) * (B @ A).norm()))


def fitted(W: Tensor, M: Tensor, A: Tensor, B: Tensor, room: Path) -> Fit:
    return fit("x", stored(W, room / "base"), stored(M, room / "merged"), Delta(B, A, 1.0, torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("s", [2.0, 16 / math.sqrt(8), -0.5])
@pytest.mark.parametrize("rho", [1e-1, 1e-2, 1e-3, 1e-4, 1e-5])
def test_the_true_scaling_is_inside_and_the_interval_is_narrow(dtype: torch.dtype, s: float, rho: float, tmp_path: Path) -> None:
    """About one constraint on ln s per changed element: an end is farther than 10 of their distances in one case of e¹⁰."""
    W, A, B = setting(rho, s, dtype)
    M = (W.float() + s * (B @ A)).to(dtype)
    found = fitted(W, M, A, B, tmp_path)
    assert found.low <= s <= found.high
    assert found.high - found.low < abs(s) * (20 / int((M != W).sum()) + 1e-4)


@pytest.mark.parametrize("how", [double, rank_chunks])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_right_arithmetic_is_inside(how, dtype: torch.dtype, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    W, A, B = setting(1e-2, 2.0, dtype)
    found = fitted(W, how(W, A, B, 2.0), A, B, tmp_path)
    assert found.low <= 2.0 <= found.high


def test_what_is_no_merge_of_this_adapter_has_no_scaling(tmp_path: Path) -> None:
    W, A, B = setting(1e-2, 2.0, torch.bfloat16)
    right = (W.float() + 2 * (B @ A)).bfloat16()
    other = (W.float() + 2 * (B.flip(0) @ A)).bfloat16()
    flipped = right.clone()
    flipped.view(torch.int16)[7, 7] ^= 4
    damaged = right.clone()
    damaged[0, 0] = torch.nan
    for number, M in enumerate((safe(W, A, B, 2.0), other, flipped, damaged)):
        assert fitted(W, M, A, B, tmp_path).empty, number
    assert fitted(W, flipped, A, B, tmp_path).nearest == pytest.approx(2.0, rel=1e-3)


def test_an_unmerged_module_says_nothing(tmp_path: Path) -> None:
    W, A, B = setting(1e-2, 2.0, torch.bfloat16)
    assert fitted(W, W, A, B, tmp_path).silent
    zero = fitted(W, W, A, torch.zeros_like(B), tmp_path)
    assert zero.silent
    assert zero.high == math.inf


def test_readings() -> None:
    def one(rank: int, s: float) -> Fit:
        return Fit(f"rank {rank}", rank, s * (1 - 1e-5), s * (1 + 1e-5))

    assert reading([one(8, 16 / math.sqrt(8))]) == "α/√r with α = 16"
    assert reading([one(8, 2.0)]) == "α/r with α = 16"
    assert reading([one(16, 2.0)]) == "α/r with α = 32, or α/√r with α = 8: the merge is the same"
    assert reading([one(16, 2.0), one(4, 8.0)]) == "α/r with α = 32"
    assert reading([one(16, 2.0), one(4, 4.0)]) == "α/√r with α = 8"
    assert reading([one(8, 0.77)]).startswith("no whole α")
    assert reading([Fit("x", 8, 1.9, 2.1)]) == "too wide to tell α"
    assert [len(group.fits) for group in groups([one(8, 2.0), one(16, 1.0), one(4, 2.0)])] == [1, 2]


def traced(case: Case, room: Path, merged: Path | None = None) -> Trace:
    """The adapter's tensors alone."""
    room.mkdir(exist_ok=True)
    for path in case.adapter.glob("adapter_model.*"):
        shutil.copy(path, room)
    base, found = open_checkpoint(case.base), open_checkpoint(merged or case.merged)
    return trace(base, found, open_adapter(room), dict(looked(base, found)))


@pytest.mark.parametrize("name", ["llama", "llama-rslora", "gpt2", "mixtral"])
def test_adapters_of_peft_and_colossalai(name: str, tmp_path: Path) -> None:
    """Conv1D, experts one by one, patterns of ranks and alphas: the true scaling of each module."""
    case = build(name, tmp_path)
    found = traced(case, tmp_path / "lost")
    assert {one.name: one.low <= case.deltas[one.name][2] <= one.high for one in found.fits} == dict.fromkeys(case.deltas, True)
    assert told(found)


def test_a_wrong_module_is_named(tmp_path: Path) -> None:
    case = build("llama-rslora", tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    assert told(traced(case, tmp_path / "lost")) == [
        told(traced(case, tmp_path / "lost"))[0].split(":")[0] + ": α/r with α = 32, or α/√r with α = 16: the merge is the same"
    ]
    edit(case.merged, lambda key, tensor: tensor.flip(0).contiguous() if key == name else tensor)
    findings = traced(case, tmp_path / "lost").findings
    assert ask(case.base, case.merged, tmp_path / "lost", "same").state is State.SUSPECT
    assert findings[0].startswith(f"{name}: no scaling makes it a once-rounded merge of this adapter")


def test_another_adapter_and_another_tensor(tmp_path: Path) -> None:
    case = build("llama-rslora", tmp_path)
    extra = "model.layers.0.mlp.down_proj.weight"
    edit(case.merged, lambda key, tensor: tensor * 1.5 if key == extra else tensor)
    assert traced(case, tmp_path / "lost").findings == (f"1 tensor changed, of which this adapter says nothing: {extra}",)
    merge_into(case, tmp_path / "twice", safe)
    assert len([f for f in traced(case, tmp_path / "lost", tmp_path / "twice").findings if "no scaling" in f]) == len(case.deltas)


def test_damage_is_told_never_raised(tmp_path: Path) -> None:
    case = build("llama-rslora", tmp_path)
    lost = tmp_path / "lost"
    traced(case, lost)
    path = lost / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    found = trace(open_checkpoint(case.base), open_checkpoint(case.merged), open_adapter(lost), {})
    assert any("the file ends here" in finding for finding in found.findings)
    path.unlink()
    empty = trace(open_checkpoint(case.base), open_checkpoint(case.merged), open_adapter(lost), {})
    assert (empty.fits, empty.reason) == ((), "the adapter holds no pair that has a place in the base")
    (case.base / "config.json").write_text("{")
    assert "architecture" in trace(open_checkpoint(case.base), open_checkpoint(case.merged), open_adapter(lost), {}).reason


def test_the_command_tells_the_scaling(tmp_path: Path) -> None:
    case = build("llama-rslora", tmp_path)
    traced(case, tmp_path / "lost")
    words = ["screen", f"--base={case.base}", f"--merged={case.merged}", f"--adapter={tmp_path / 'lost'}"]
    run = CliRunner().invoke(app, words)
    assert run.exit_code == 10
    assert "scaling  between 7.9999" in run.output
    assert "in 4 modules of rank 4: α/r with α = 32, or α/√r with α = 16: the merge is the same" in run.output
