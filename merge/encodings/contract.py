"""What a storage format must be able to do: give its numbers as float32, and take float32 back with one rounding."""

from dataclasses import dataclass
from typing import Protocol

import torch

from merge.encodings.blocks import BlockScales


class Encoding(Protocol):
    """How one element's number is stored, its block's scale aside."""

    @property
    def dtype(self) -> str:
        """The format's name in a safetensors header."""

    def view(self, raw: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The first bytes of a uint8 buffer, read as elements of this encoding."""

    def decode(self, stored: torch.Tensor, exact: torch.Tensor) -> None:
        """The same numbers in float32; `exact` has the shape of `stored` and is overwritten."""

    def encode(self, exact: torch.Tensor, stored: torch.Tensor) -> bool:
        """Round once, to nearest, ties to even, into `stored`; False if a number has no place there."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The numbers that can stand in one tensor: those of an encoding, times the scale of their block where the tensor is quantised."""

    encoding: Encoding
    scales: BlockScales | None = None

    def view(self, raw: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The first bytes of a uint8 buffer, read as elements of the encoding."""
        return self.encoding.view(raw, shape)

    def decode(self, stored: torch.Tensor, exact: torch.Tensor, start: int) -> None:
        """Rows start … of the tensor as float32: code × scale, rounded to float32.

        stored  (n, columns)  of the encoding      exact  (n, columns)  float32, overwritten
        """
        self.encoding.decode(stored, exact)
        if self.scales:
            self.scales.multiply(exact, start)

    def encode(self, exact: torch.Tensor, stored: torch.Tensor, start: int) -> bool:
        """The grid point nearest to each number; False if one has no place. `exact` may be overwritten."""
        if self.scales:
            self.scales.divide(exact, start)
        return self.encoding.encode(exact, stored)
