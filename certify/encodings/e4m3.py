"""Eight bits that are a number: sign, four bits of exponent, three of mantissa. Source: OCP 8-bit Floating Point Specification, table 1.

exponent e > 0:  ± 2^(e − 7) · (1 + m/8)        e = 0:  ± 2^−6 · m/8        e = 15, m = 7: not a number; there is no infinity
"""

import math
from typing import Final

import torch

CODES: Final = "F8_E4M3"  # in a header
LARGEST: Final = 448.0
OVERFLOW: Final = 464.0  # halfway to what would come next: beyond, the nearest number is one that the format has not


def _number(code: int) -> float:
    exponent, mantissa = code >> 3 & 15, code & 7
    size = math.ldexp(8 + mantissa, exponent - 10) if exponent else math.ldexp(mantissa, -9)
    return math.copysign(math.nan if (exponent, mantissa) == (15, 7) else size, -1 if code & 128 else 1)


NUMBERS: Final = torch.tensor([_number(code) for code in range(256)], dtype=torch.float32)  # of each code
