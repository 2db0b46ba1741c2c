"""Eight bits: a sign, four of exponent, three of mantissa, no infinity. Source: OCP 8-bit floating point specification, OFP8 E4M3."""

import torch

STRIP = 1 << 16  # elements decoded at a time, so that their indices stay in a core's second cache
VALUES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


class E4M3:
    """Codes whose numbers count in units of their block's scale."""

    dtype = "F8_E4M3"

    def view(self, raw: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The first bytes of a uint8 buffer, read as codes."""
        return raw[: torch.Size(shape).numel()].view(torch.float8_e4m3fn).view(shape)

    def decode(self, stored: torch.Tensor, exact: torch.Tensor) -> None:
        """By a table of the 256 codes: torch's own conversion takes five times as long."""
        codes, values = stored.view(torch.uint8).view(-1), exact.view(-1)
        for strip in range(0, len(codes), STRIP):
            torch.index_select(VALUES, 0, codes[strip : strip + STRIP].int(), out=values[strip : strip + STRIP])

    def encode(self, exact: torch.Tensor, stored: torch.Tensor) -> bool:
        """Rounded once; up to 464 that is 448 at the most, and beyond it there is no place. False for that, and for what is no number."""
        stored.copy_(exact)
        return bool(exact.amax() <= 464) and bool(exact.amin() >= -464)


CODES = E4M3()
