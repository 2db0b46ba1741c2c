"""The scales of a touched weight: kept, doubled because the values need it, or made anew by the format's recipe; nothing else."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from certify.checks.c4_scales import scale_tensor
from certify.encodings.coded import Coded, Shelf
from certify.expect.expectation import Expectation, Part, Region
from certify.finding import Outcome
from certify.inputs.adapter import AdapterTensor
from certify.inputs.checkpoint import open_checkpoint

ROWS, COLUMNS, BLOCK = 12, 20, (8, 8)  # blocks that end early on both sides
VALUES = torch.linspace(-1, 1, ROWS * COLUMNS).view(ROWS, COLUMNS).clone()


def coded(room: Path, scale: Tensor) -> Coded:
    """Zeros and a scale: only the scale and the shape are looked at where a weight is replaced."""
    room.mkdir(parents=True)
    save_file({"w": torch.zeros(ROWS, COLUMNS).to(torch.float8_e4m3fn), "s": scale}, room / "model.safetensors")
    found = open_checkpoint(room).tensors
    return Coded(found["w"].path, found["w"].entry, scale=found["s"], height=BLOCK[0], width=BLOCK[1], shelf=Shelf())


def largest(values: Tensor) -> Tensor:
    return torch.stack([torch.stack([b.abs().max() for b in rows.split(BLOCK[1], 1)]) for rows in values.split(BLOCK[0])])


def judged(room: Path, ours: Tensor, theirs: Tensor, values: Tensor = VALUES) -> dict[str, object]:
    """Figures about scales; a weight that the adapter replaces, so that its values are `values`."""
    source = AdapterTensor("F32", tuple(values.shape), values)
    found = scale_tensor("s", Expectation(source, COLUMNS), coded(room / "base", ours), coded(room / "merged", theirs), "nearest")
    assert (found.outcome is Outcome.PASSED) is (found.figures["wrong"] == 0)
    return dict(found.figures)


def test_each_reason_is_counted(tmp_path: Path) -> None:
    fresh = largest(VALUES) / 448
    ours = fresh * torch.tensor([[1.1, 0.6, 0.3], [1.0, 3.0, 0.9]])
    theirs = ours * torch.tensor([[1, 2, 4], [1, 1, 1]])
    theirs[1, 1] = fresh[1, 1]
    found = judged(tmp_path, ours, theirs)
    assert (found["kept"], found["doubled"], found["renewed"], found["wrong"]) == (3, 2, 1, 0)


@pytest.mark.parametrize("factor", [2.0, 0.5, 1.5, 1 + 2.0**-20, 2.0**12])
def test_without_a_reason_it_is_wrong(factor: float, tmp_path: Path) -> None:
    """Where the base's own would do: 1.2 times what is needed."""
    ours = largest(VALUES) / 448 * 1.2
    theirs = ours.clone()
    theirs[1, 2] *= factor
    found = judged(tmp_path, ours, theirs)
    assert (found["kept"], found["wrong"]) == (5, 1)


def test_twice_too_often_is_wrong(tmp_path: Path) -> None:
    ours = largest(VALUES) / 448 * 0.6
    assert judged(tmp_path / "a", ours, ours * 4)["wrong"] == 6
    assert judged(tmp_path / "b", ours, ours * 2)["doubled"] == 6


def test_powers_of_two_stay_powers_of_two(tmp_path: Path) -> None:
    fresh = torch.exp2(torch.ceil(torch.log2(largest(VALUES) / 448)))
    ours = fresh * torch.tensor([[1, 4, 2], [2, 4, 8]])
    assert judged(tmp_path / "a", ours, fresh)["renewed"] == 5
    assert judged(tmp_path / "b", ours, largest(VALUES) / 448)["wrong"] >= 5
    assert judged(tmp_path / "c", ours.to(torch.float8_e8m0fnu), fresh.to(torch.float8_e8m0fnu))["wrong"] == 0


def test_blocks_of_zeros_and_scales_of_zero(tmp_path: Path) -> None:
    values = VALUES.clone()
    values[:8, :8] = 0
    ours = largest(values) / 448
    ours[0, 0] = 0.25
    ones = ours.clone()
    ones[0, 0] = 1
    assert judged(tmp_path / "a", ours, ones, values)["renewed"] == 1
    none = ours.clone()
    none[1, 1] = 0
    begun = none.clone()
    begun[1, 1] = torch.exp2(torch.ceil(torch.log2(ours[1, 1])))
    assert judged(tmp_path / "b", none, begun, values)["renewed"] == 1
    wrong = none.clone()
    wrong[1, 1] = 7.0
    assert judged(tmp_path / "c", none, wrong, values)["wrong"] == 1


def test_a_delta_makes_room_for_float32(tmp_path: Path) -> None:
    """Fresh scales of W + Δ, added up in another order than the gate's."""
    torch.manual_seed(4)
    a, b = torch.randn(16, COLUMNS), torch.randn(ROWS, 16) * 0.1
    part = Part(AdapterTensor("F32", (16, COLUMNS), a), AdapterTensor("F32", (ROWS, 16), b), 16, 2.0, "out,in")
    merged = VALUES + sum(2.0 * torch.outer(b[:, k], a[k]) for k in reversed(range(16)))
    start = AdapterTensor("F32", (ROWS, COLUMNS), VALUES)
    expectation = Expectation(start, COLUMNS, (Region(0, ROWS, (part,)),))
    for number, (theirs, right) in enumerate(((largest(merged) / 448, True), (largest(merged.bfloat16().float()) / 448, False))):
        sides = coded(tmp_path / f"{number} base", largest(VALUES) / 448), coded(tmp_path / f"{number} merged", theirs)
        assert (scale_tensor("s", expectation, *sides, "nearest").outcome is Outcome.PASSED) is right
