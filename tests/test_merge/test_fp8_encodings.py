"""What e4m3 codes and their scales mean, held against the libraries that read them, and against bytes written out by hand.

One contract for every layout; a new layout is a subclass that says what its scales are and what the reference makes of them.
"""

from typing import ClassVar

import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
from transformers.utils.quantization_config import FineGrainedFP8Config

from merge import encodings
from merge.encodings import BlockScales, Grid

CODES = encodings.named("F8_E4M3")
ALL = torch.arange(256, dtype=torch.uint8)
NUMBERS = ALL[(ALL & 0x7F) != 0x7F]


def decoded(grid: Grid, codes: torch.Tensor, start: int = 0) -> torch.Tensor:
    exact = torch.full(codes.shape, float("nan"))
    grid.decode(codes.view(torch.float8_e4m3fn), exact, start)
    return exact


def encoded(grid: Grid, exact: torch.Tensor, start: int = 0) -> tuple[torch.Tensor, bool]:
    codes = torch.zeros(exact.shape, dtype=torch.uint8)
    fits = grid.encode(exact.clone(), codes.view(torch.float8_e4m3fn), start)
    return codes, fits


class EncodingContract:
    """256 rows of 320 columns; what shares a scale is the subclass's."""

    dtype: ClassVar[str] = "F32"
    block: ClassVar[tuple[int, int]]
    scales: ClassVar[torch.Tensor]  # as stored

    def reference(self, codes: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def grid(self) -> Grid:
        exact = torch.empty(self.scales.shape)
        encodings.named(self.dtype).decode(self.scales, exact)
        return Grid(CODES, BlockScales(exact, *self.block, rows=256))

    def factors(self) -> torch.Tensor:
        """The scale of every element, float64."""
        values = self.grid().scales.values.double()  # type: ignore[union-attr]
        return values.repeat_interleave(self.block[0], 0)[:256].repeat_interleave(self.block[1], 1)[:, :320]

    def test_every_code_is_what_the_reference_makes_of_it(self) -> None:
        codes = ALL.roll(5).repeat(320).view(256, 320)
        found, expected = decoded(self.grid(), codes), self.reference(codes)
        assert torch.equal(found.to(expected.dtype).isnan(), expected.isnan())
        assert torch.equal(found.to(expected.dtype).nan_to_num(7.0), expected.nan_to_num(7.0))

    def test_slabs_meet_the_scales_of_their_rows(self) -> None:
        codes = NUMBERS[torch.randint(254, (256, 320), generator=torch.Generator().manual_seed(3))]
        whole = decoded(self.grid(), codes)
        for start, stop in ((0, 64), (64, 128), (100, 101), (96, 256)):
            assert torch.equal(decoded(self.grid(), codes[start:stop], start), whole[start:stop])

    def test_every_number_comes_back_as_its_code(self) -> None:
        codes = NUMBERS.repeat(323)[: 256 * 320].view(256, 320)
        again, fits = encoded(self.grid(), decoded(self.grid(), codes))
        assert fits
        assert torch.equal(again, codes)

    def test_rounding_finds_the_nearest_of_all_codes(self) -> None:
        factors = self.factors()
        exact = (torch.randn(256, 320, generator=torch.Generator().manual_seed(4)).double() * 100 * factors).clamp(
            -464 * factors, 464 * factors
        )
        codes, fits = encoded(self.grid(), exact.float())
        grid = NUMBERS.view(torch.float8_e4m3fn).double().sort().values
        units = exact.float().double() / factors
        above = torch.searchsorted(grid, units).clamp(1, 253)
        least = torch.minimum((units - grid[above - 1]).abs(), (grid[above] - units).abs())
        assert fits
        error = (codes.view(torch.float8_e4m3fn).double() - units).abs()
        assert bool((error <= least + 2 * 2.0**-24 * units.abs()).all())  # the float32 division may have crossed the middle

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
    def test_what_has_no_place_is_told(self, value: float) -> None:
        exact = torch.zeros(256, 320)
        exact[200, 300] = value
        assert not encoded(self.grid(), exact)[1]

    def test_a_scale_grows_where_something_overflows_and_nowhere_else(self) -> None:
        """By doublings: every number of the block that is no subnormal keeps its value."""
        grid = self.grid()
        assert grid.scales is not None
        exact = decoded(grid, NUMBERS[torch.randint(254, (256, 320), generator=torch.Generator().manual_seed(5))])
        factor = self.factors()[130, 140].item()
        exact[130, 140] = 3 * 464 * factor
        largest = torch.zeros_like(grid.scales.values)
        for start in range(0, 256, 64):
            grid.scales.largest(exact[start : start + 64], start, largest)
        grown = grid.scales.grown(largest)
        ratio = grown.values / grid.scales.values
        row, column = 130 // self.block[0], 140 // self.block[1]
        assert ratio[row, column] == 4
        ratio[row, column] = 1
        assert bool((ratio == 1).all())
        codes, fits = encoded(Grid(CODES, grown), exact)
        assert fits
        large = (exact.abs() >= 2**-4 * self.factors()) & (exact.abs() <= 448 * self.factors())
        assert torch.equal(decoded(Grid(CODES, grown), codes)[large], exact[large])
        stored = torch.empty(grown.values.shape, dtype=self.scales.dtype)
        assert encodings.named(self.dtype).encode(grown.values, stored)
        assert torch.equal(stored.float(), grown.values)


class TestBlocks(EncodingContract):
    """DeepSeek's: 128 × 128, the last block of each row of blocks ragged."""

    block = (128, 128)
    scales = torch.tensor([[1e-3, 0.75, 3.7e-5], [2.0, 1.1e-4, 6.5e-2]])

    def reference(self, codes: torch.Tensor) -> torch.Tensor:
        """weight_dequant of DeepSeek-V3's inference/kernel.py: x = x.to(float32) * s, block by block."""
        found = torch.empty(codes.shape)
        for i in range(0, codes.shape[0], 128):
            for j in range(0, codes.shape[1], 128):
                s = self.scales[i // 128, j // 128].float()
                found[i : i + 128, j : j + 128] = codes[i : i + 128, j : j + 128].view(torch.float8_e4m3fn).to(torch.float32) * s
        return found


class TestAlignedBlocks(EncodingContract):
    """Where a block's size divides the weight's, transformers itself is the reference."""

    block = (128, 64)
    scales = torch.tensor([[1e-3, 0.75, 3.7e-5, 0.5, 1.7], [2.0, 1.1e-4, 6.5e-2, 9.0, 1e-9]])

    def reference(self, codes: torch.Tensor) -> torch.Tensor:
        return Fp8Dequantize(None)._dequantize_one(codes.view(torch.float8_e4m3fn), self.scales, torch.float32)


class TestPowersOfTwo(TestAlignedBlocks):
    """ue8m0, a byte per scale under its own name."""

    dtype = "F8_E8M0"
    scales = torch.tensor([[117, 126, 100, 127, 128], [130, 120, 127, 125, 119]], dtype=torch.uint8).view(torch.float8_e8m0fnu)


class TestUnnamedPowersOfTwo(TestPowersOfTwo):
    """The same bytes as plain uint8: transformers reads them as 2^(byte − 127)."""

    dtype = "U8"

    def reference(self, codes: torch.Tensor) -> torch.Tensor:
        return Fp8Dequantize(None)._dequantize_one(codes.view(torch.float8_e4m3fn), self.scales.view(torch.uint8), torch.float32)


class TestChannels(EncodingContract):
    """compressed-tensors, one BF16 scale per output channel."""

    dtype = "BF16"
    block = (1, 320)
    scales = torch.rand(256, 1, generator=torch.Generator().manual_seed(1)).add(1e-3).bfloat16()

    def reference(self, codes: torch.Tensor) -> torch.Tensor:
        """_dequantize of compressed-tensors' quantization/lifecycle/forward.py: x_q.to(scale.dtype) * scale, in the scale's dtype."""
        return codes.view(torch.float8_e4m3fn).to(self.scales.dtype) * self.scales


class TestTensor(TestChannels):
    """compressed-tensors, one scale for the whole weight."""

    dtype = "F32"
    block = (256, 320)
    scales = torch.tensor([[0.0173]])


def test_golden_bytes() -> None:
    """Written by hand from the format's tables: sign, 4 bits of exponent with bias 7, 3 of mantissa; two rows with scales 0.75 and 2."""
    codes = bytes.fromhex("00 01 07 08 38 3c 7e c8 80 fe" + "00 01 07 08 38 3c 7e c8 80 fe")
    scales = bytes.fromhex("0000403f" + "00000040")  # 0.75, 2
    expected = bytes.fromhex(
        "00000000 0000c03a 0000283c 0000403c 0000403f 0000903f 0000a843 000040c0 00000080 0000a8c3"
        "00000000 0000803b 0000e03c 0000003d 00000040 00004040 00006044 000000c1 00000080 000060c4"
    )
    values = torch.frombuffer(bytearray(scales), dtype=torch.float32).view(2, 1)
    found = decoded(Grid(CODES, BlockScales(values, 1, 10, rows=2)), torch.frombuffer(bytearray(codes), dtype=torch.uint8).view(2, 10))
    assert found.numpy().tobytes().hex(" ", 4) == expected.hex(" ", 4)
    powers = torch.tensor([0, 1, 126, 127, 128, 254], dtype=torch.uint8)
    exact = torch.empty(6)
    encodings.named("U8").decode(encodings.named("U8").view(powers, (6,)), exact)
    assert exact.tolist() == [2.0**-127, 2.0**-126, 0.5, 1.0, 2.0, 2.0**127]


def test_a_stack_of_matrices_has_scales_for_each() -> None:
    """3 matrices of 10 rows in blocks of 4 × 4: block rows 0…2, 3…5, 6…8."""
    values = torch.arange(1.0, 10.0).view(9, 1)
    grid = Grid(CODES, BlockScales(values, 4, 4, rows=10))
    ones = torch.full((30, 3), 0x38, dtype=torch.uint8)
    expected = [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    for matrix in range(3):
        rows = slice(10 * matrix, 10 * matrix + 10)
        assert decoded(grid, ones[rows], 10 * matrix)[:, 0].tolist() == [value + 3 * matrix for value in expected]


def test_a_block_that_was_zero_with_a_scale_of_zero_gets_one() -> None:
    scales = BlockScales(torch.tensor([[0.0]]), 4, 4, rows=4)
    assert scales.grown(torch.tensor([[7.0]])).values.item() == 2.0**-6
    assert scales.grown(torch.tensor([[0.0]])).values.item() == 0


def test_what_transformers_quantises_is_read_as_it_reads_it() -> None:
    """Its own recipe and its own reader around ours: amax/448 blocks of 128 × 128."""
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(2))
    quantizer = type("Quantizer", (), {"quantization_config": FineGrainedFP8Config()})
    made = Fp8Quantize(quantizer)._quantize_one("a.weight", weight)
    codes, scales = made["a.weight"], made["a.weight_scale_inv"]
    found = decoded(Grid(CODES, BlockScales(scales, 128, 128, rows=256)), codes.view(torch.uint8))
    assert torch.equal(found, Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32))
