"""The gate's own reading of fp8: the numbers of all codes, the scale of every element, and the grid that they make."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from certify.encodings.coded import Coded, Shelf, fitted, scales
from certify.encodings.declaration import ALL, Declaration, read, stated
from certify.encodings.e4m3 import NUMBERS, OVERFLOW
from certify.errors import DamagedError, NotInterpretedError
from certify.grid import Grid
from certify.inputs.checkpoint import open_checkpoint

CODES = torch.arange(256, dtype=torch.uint8)
FINITE = NUMBERS[NUMBERS.isfinite()].unique()


def coded(tmp_path: Path, codes: Tensor, held: Tensor, block: tuple[int, int]) -> Coded:
    save_file({"w": codes, "s": held}, tmp_path / "model.safetensors")
    found = open_checkpoint(tmp_path).tensors
    return Coded(found["w"].path, found["w"].entry, scale=found["s"], height=block[0], width=block[1], shelf=Shelf())


def test_every_code_is_the_number_that_torch_says() -> None:
    theirs = CODES.view(torch.float8_e4m3fn).float()
    assert torch.equal(NUMBERS.nan_to_num(-1), theirs.nan_to_num(-1))
    assert torch.equal(torch.signbit(NUMBERS), torch.signbit(theirs))
    golden = {0x00: 0.0, 0x01: 2.0**-9, 0x07: 7 * 2.0**-9, 0x08: 2.0**-6, 0x38: 1.0, 0x39: 1.125, 0x7E: 448.0, 0xFE: -448.0, 0xC0: -2.0}
    assert {code: float(NUMBERS[code]) for code in golden} == golden
    assert NUMBERS.isnan().nonzero().view(-1).tolist() == [0x7F, 0xFF]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e8m0fnu])
def test_exponents_are_powers_of_two(dtype: torch.dtype, tmp_path: Path) -> None:
    found = scales(coded(tmp_path, torch.zeros(256, 1).to(torch.float8_e4m3fn), CODES.view(dtype), (1, 1)).scale)
    assert torch.equal(found.nan_to_num(-1), CODES.view(torch.float8_e8m0fnu).float().nan_to_num(-1))


@pytest.mark.parametrize("shape", [(300, 200), (128, 128), (7, 513), (3, 40, 72)])
@pytest.mark.parametrize("block", [(128, 128), (16, 24), (1, ALL), (ALL, ALL)])
def test_every_element_has_its_own_scale_however_it_is_read(shape: tuple[int, ...], block: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(5)
    rows, columns = shape[-2:]
    height, width = block[0] or rows, block[1] or columns
    held = torch.rand(*shape[:-2], -(-rows // height), -(-columns // width)) + 0.5
    codes = torch.randint(0, 127, shape, dtype=torch.uint8).view(torch.float8_e4m3fn)
    expected = codes.float() * held.repeat_interleave(height, -2)[..., :rows, :].repeat_interleave(width, -1)[..., :columns]
    one = coded(tmp_path, codes, held, block)
    assert fitted(one, one.scale, Declaration("", (block,))) == block
    assert torch.equal(one.load(), expected)
    assert torch.equal(torch.cat(list(one.elements(1000))), expected.view(-1)), "pieces that end inside a row"
    some, matrix = [0, rows - 1, rows // 2], expected.view(-1, columns)
    assert torch.equal(one.rows(some), matrix[some])
    assert torch.equal(one.grid(some).once(matrix[some]), matrix[some])


def test_a_file_that_ends_early_is_damaged(tmp_path: Path) -> None:
    one = coded(tmp_path, torch.zeros(8, 8).to(torch.float8_e4m3fn), torch.ones(1, 1), (128, 128))
    one.path.write_bytes(one.path.read_bytes()[:-66])
    with pytest.raises(DamagedError):
        one.load()


@pytest.mark.parametrize("scale", [1.0, 2.0**-11, 3.1415e-4, 1.7e-38])
def test_the_grid_is_that_of_the_codes(scale: float) -> None:
    """Against a search among all numbers: nearest with ties to even codes, the neighbour below, the one above."""
    torch.manual_seed(1)
    held = torch.tensor([[scale]])
    points = (FINITE * held).view(-1)
    middles = (FINITE[1:].double() + FINITE[:-1].double()) / 2 * held.double().view(())
    value = torch.cat([torch.randn(4000).double() * 100 * scale, points.double(), middles, torch.tensor([OVERFLOW * scale])])
    value = value[(value.abs() <= OVERFLOW * held.double().view(()))].view(-1, 1)
    grid, near = Grid(torch.float32, held.expand(len(value), 1)), (value / held.double()).float().to(torch.float8_e4m3fn).float() * held
    assert torch.equal(grid.nearest(value), near.double())
    assert torch.equal(Grid(torch.float32, held).once(points.view(-1, 1)).view(-1), points)
    at = torch.searchsorted(points.double(), value, right=True)
    assert torch.equal(grid.down(value), points.double()[at - 1])
    above, inside = points.double()[torch.searchsorted(points.double(), value).clamp(max=len(points) - 1)], value <= 448 * scale
    assert torch.equal(grid.up(value)[inside], above[inside])


def test_beyond_the_largest_code_nothing_is_right() -> None:
    grid, value = Grid(torch.float32, torch.ones(1, 1)), torch.tensor([[449.0, 464.0, 464.1, -500.0, torch.nan]]).double()
    assert grid.nearest(value)[0, :4].tolist() == [448, 448, torch.inf, -torch.inf]
    assert grid.down(value)[0, :4].tolist() == [448, 448, torch.inf, -torch.inf]
    assert grid.up(value)[0, :3].tolist() == [torch.inf, torch.inf, torch.inf]
    assert bool(grid.nearest(value)[0, 4].isnan())
    assert Grid(torch.float32, torch.zeros(1, 1)).nearest(torch.tensor([[0.0, 1.0]]).double()).tolist() == [[0.0, torch.inf]]


FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
GROUP = {"num_bits": 8, "type": "float", "symmetric": True}


def tensors(**weights: Any) -> dict[str, Any]:
    groups = {name: {"weights": {**GROUP, **weights}} for name in ("group_0",)}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({**FP8, "weight_block_size": [128, 64]}, Declaration("_scale_inv", ((128, 64),))),
        (FP8, Declaration("_scale_inv", ((ALL, ALL),))),
        (tensors(strategy="channel"), Declaration("_scale", ((1, ALL),))),
        (tensors(strategy="tensor"), Declaration("_scale", ((ALL, ALL),))),
        (tensors(strategy="block", block_structure=[128, 128]), Declaration("_scale", ((128, 128),))),
        ({**FP8, "fmt": "e5m2"}, None),
        ({**FP8, "weight_block_size": [0, 128]}, None),
        ({**FP8, "weight_block_size": 128}, None),
        (tensors(strategy="group", group_size=32), None),
        (tensors(strategy="tensor", symmetric=False), None),
        ({"quant_method": "gptq"}, None),
        ("fp8", None),
    ],
)
def test_what_a_configuration_declares(settings: Any, expected: Declaration | None) -> None:
    if expected is not None:
        assert read(settings) == expected
        return
    with pytest.raises(NotInterpretedError):
        read(settings)


def test_it_is_found_at_every_level() -> None:
    inner = {"text_config": {"quantization_config": FP8}, "compression_config": None}
    config = {**inner, "quantization_config": {"x": {"quantization_config": 1}}}
    assert [path for path, _ in stated(config)] == ["text_config.quantization_config", "quantization_config"]


@pytest.mark.parametrize(
    ("weight", "scale", "block", "fits"),
    [
        ((576, 256), (5, 2), (128, 128), True),
        ((576, 256), (9, 4), (128, 128), False),
        ((576, 256), (9, 4), (64, 64), True),
        ((320, 96), (320,), (1, ALL), True),
        ((320, 96), (), (ALL, ALL), True),
        ((320, 96), (96,), (1, ALL), False),
        ((4, 64, 96), (4, 1, 1), (128, 128), True),
        ((4, 64, 96), (1, 1), (128, 128), False),
        ((4, 4, 64, 96), (4, 4, 1, 1), (128, 128), False),
        ((64,), (1,), (128, 128), False),
    ],
)
def test_scales_fit_by_the_declared_blocks_alone(
    weight: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int], fits: bool, tmp_path: Path
) -> None:
    one = coded(tmp_path, torch.zeros(weight).to(torch.float8_e4m3fn), torch.ones(scale), block)
    assert isinstance(fitted(one, one.scale, Declaration("", (block,))), tuple) is fits


@pytest.mark.parametrize("grid", [Grid(torch.bfloat16), Grid(torch.float16), Grid(torch.float32, torch.tensor([[3.1e-4]]))], ids=str)
def test_beside_is_one_of_the_two_neighbours_and_a_number_of_the_grid_is_alone(grid: Grid) -> None:
    torch.manual_seed(2)
    value = torch.cat([torch.randn(64, 64) * 0.02, grid.once(torch.randn(64, 64) * 0.02).float(), torch.zeros(1, 64)])
    low, high = grid.down(value.double()), grid.up(value.double())
    below, above = (
        grid.down(torch.nextafter(low.float(), torch.tensor(-torch.inf)).double()),
        grid.up(torch.nextafter(high.float(), torch.tensor(torch.inf)).double()),
    )
    own = grid.dtype
    assert bool((grid.beside(low.to(own), value) & grid.beside(high.to(own), value)).double().mean() > 0.999), (
        "but for a last bit of the quotient"
    )
    assert not bool(grid.beside(below.to(own), value).any())
    assert not bool(grid.beside(above.to(own), value).any())
    assert torch.equal(low[64:], high[64:])
    assert not bool(grid.beside(torch.full_like(value, torch.nan).to(own), value).any())
