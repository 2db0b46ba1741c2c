"""The numbers that can stand in a tensor: those of a float dtype; or the codes of e4m3, times the scale of their block."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from certify.encodings.e4m3 import LARGEST, OVERFLOW

CODE = torch.float8_e4m3fn  # what torch calls it: only the spacing of its numbers is asked of torch


@dataclass(frozen=True, slots=True)
class Grid:
    """dtype: what the numbers are given in      scale: float32, (rows, columns) or (rows, 1), where they are codes × scale

    A code × scale is the number that a float32 reader makes of it: rounded to float32 once.
    """

    dtype: torch.dtype
    scale: Tensor | None = None

    def once(self, value: Tensor) -> Tensor:
        """float32 values, each rounded once as a float32 merge rounds them; in `dtype`."""
        if self.scale is None:
            return value.to(self.dtype)
        return self._coded(value, torch.round, self.scale)

    def beside(self, stored: Tensor, value: Tensor) -> Tensor:
        """Where stored numbers of the grid are one of the two that float32 values lie between, or the value itself where it is one."""
        if self.scale is None:
            near = value.to(self.dtype)
            off = (value - near.float()).sign_()
            other = torch.nextafter(near, (off * torch.inf).nan_to_num_(nan=0.0).to(self.dtype))
            return (stored == near) | ((stored == other) & (off != 0))
        low, high = (self._coded(value, rounded, self.scale) for rounded in (torch.floor, torch.ceil))
        return ((stored == low) & (high != value)) | ((stored == high) & (low != value)) | (stored == value)

    def nearest(self, value: Tensor) -> Tensor:
        """float64 → float64, by way of float32 as every merge goes."""
        if self.scale is None:
            return value.float().to(self.dtype).double()
        return self._coded(value, torch.round, self.scale)

    def down(self, value: Tensor) -> Tensor:
        """The largest number of the grid that is not above, float64."""
        if self.scale is not None:
            low, high = (self._coded(value, rounded, self.scale) for rounded in (torch.floor, torch.ceil))
            return torch.where(high <= value, high, low)  # a code × scale that was rounded down to float32 is itself
        near = value.to(self.dtype)
        below = torch.nextafter(near, torch.full_like(near, -torch.inf))
        return torch.where(near.double() > value, below, near).double()

    def up(self, value: Tensor) -> Tensor:
        """The smallest that is not below, float64."""
        return -self.down(-value)

    def half_step(self, value: Tensor) -> Tensor:
        """Half the spacing around each value, in the value's own precision."""
        if self.scale is None:
            return half_ulp(value, self.dtype)
        return half_ulp((value / self.scale).nan_to_num_(), CODE).mul_(self.scale).clamp_(min=_least(value.dtype))

    def between(self, value: Tensor, towards: float) -> Tensor:
        """Halfway from numbers of the grid to the next one, float64."""
        beside = torch.nextafter(value, torch.full_like(value, towards)).double()
        if self.scale is not None:
            beside = self.up(beside) if towards > 0 else self.down(beside)
        return (value.double() + beside.nan_to_num(posinf=0, neginf=0)) / 2

    def scaled(self, codes: Tensor) -> Tensor:
        """What codes stand for."""
        return codes if self.scale is None else codes * self.scale

    def of(self, rows: Tensor) -> "Grid":
        """Of some rows, by number or by mask."""
        return self if self.scale is None else replace(self, scale=self.scale[rows])

    def finite(self, value: Tensor) -> Tensor:
        """float64 values, those beyond the largest number replaced by it, in place."""
        most = torch.tensor(torch.finfo(self.dtype).max) if self.scale is None else LARGEST * self.scale
        return value.clamp_(-most.double(), most.double())

    @staticmethod
    def _coded(value: Tensor, rounded: Callable[[Tensor], Tensor], scale: Tensor) -> Tensor:
        """Infinity for what lies beyond e4m3: there nothing is right. A scale of zero has a code for nothing but zero."""
        quotient = value / scale
        least, most = quotient.aminmax()
        if bool(least.isnan()):
            quotient = torch.where((scale == 0) & (value == 0), 0.0, quotient)
        gap = half_ulp(quotient, CODE).mul_(2)
        code = rounded(quotient / gap).mul_(gap)
        number = (code * scale).float().to(value.dtype)
        if not (bool(least >= -LARGEST) and bool(most <= LARGEST)):
            beyond = (quotient.abs() > OVERFLOW) | (code.abs() > LARGEST)
            number[beyond] = quotient[beyond].sign_().mul_(torch.inf)
        return number


def half_ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the spacing of `dtype` around each value, in the value's own precision."""
    finfo = torch.finfo(dtype)
    size = value.abs().clamp_(min=finfo.smallest_normal)
    bits, exponent = (torch.int64, 0x7FF0 << 48) if size.dtype == torch.float64 else (torch.int32, 0x7F80 << 16)
    below = (size.view(bits) & exponent).view(size.dtype)  # the exponent bits alone: the power of two below
    return below.mul_(finfo.eps / 2).clamp_(min=_least(size.dtype))


def _least(dtype: torch.dtype) -> float:
    """The smallest number above zero: no spacing is zero."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
