"""Eight bits: a sign, four of exponent, three of mantissa, no infinity. Source: OCP 8-bit floating point specification, OFP8 E4M3."""

import torch

from merge.encodings.blocks import OVERFLOW

STRIP = 1 << 16  # elements decoded at a time, so that their indices stay in a core's second cache
VALUES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
PAIRS = torch.stack([VALUES.repeat(256), VALUES.repeat_interleave(256)], 1).view(torch.float64).flatten()  # two numbers side by side


class E4M3:
    """Codes whose numbers count in units of their block's scale."""

    dtype = "F8_E4M3"

    def view(self, raw: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The first bytes of a uint8 buffer, read as codes."""
        return raw[: torch.Size(shape).numel()].view(torch.float8_e4m3fn).view(shape)

    def decode(self, stored: torch.Tensor, exact: torch.Tensor) -> None:
        """By a table of all pairs of codes, or of the 256 codes where their number or place is odd: torch's own conversion takes seven
        times as long."""
        codes, values = stored.view(torch.uint8).view(-1), exact.view(-1)
        table = VALUES
        if all(int(count) % 2 == 0 for count in (len(codes), stored.storage_offset(), exact.storage_offset())):
            table, codes, values = PAIRS, codes.view(torch.uint16), values.view(torch.float64)
        for strip in range(0, len(codes), STRIP):
            torch.index_select(table, 0, codes[strip : strip + STRIP].int(), out=values[strip : strip + STRIP])

    def encode(self, exact: torch.Tensor, stored: torch.Tensor) -> bool:
        """Rounded once; up to 464 that is 448 at the most, and beyond it there is no place. False for that, and for what is no number."""
        stored.copy_(exact)
        return bool(exact.amax() <= OVERFLOW) and bool(exact.amin() >= -OVERFLOW)


CODES = E4M3()
