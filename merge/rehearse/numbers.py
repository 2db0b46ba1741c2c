"""The twin's numbers: seeded by name, so that the order in which they are made does not matter. Pure.

Weights are normal numbers as an initialiser chooses them; every block of a quantised weight has a scale of its own, so that one taken from
a wrong place shows, and one weight in eight outgrows its scales; the adapter's change has a tenth of a weight's length.
"""

import math
import zlib
from collections.abc import Iterable, Mapping

import torch

from merge.adapters import Adapter
from merge.adapters.contract import Addend, Addition, Contribution, Stacked
from merge.catalog import Tensor, stored_bytes
from merge.encodings import BlockScales
from merge.encodings.blocks import E4M3_MAX
from merge.operation import Scale

SIGMA = 0.02  # of the weights, as initialisers choose it
RHO = 0.1  # ‖Δ‖ / ‖W‖: survives every storage that is merged into
CHANCE = 8.0  # / √elements: in few numbers a change is larger, so that it resembles no weight (four σ of a cosine, and twice that in ‖Δ‖)
TIGHT = (-13, -11)  # exponents of the scales of one weight in ONE_IN: 448 · 2⁻¹³ is 2.7 SIGMA, and the change outgrows them
ROOMY, ONE_IN = (-9, -7), 8  # of the others: 448 · 2⁻⁹ is 44 SIGMA, and the change fits
STORED = {
    **{"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64},
    **{"F8_E8M0": torch.float8_e8m0fnu, "U8": torch.float8_e8m0fnu},
}


def encoded(values: torch.Tensor, dtype: str) -> bytes:
    """float32 numbers as a file holds them."""
    return values.to(STORED[dtype]).contiguous().flatten().view(torch.uint8).numpy().tobytes()


class Base:
    """The twin's base. scales  weight → its scale, in the twin      alias  tensor → the one whose numbers it repeats: ties"""

    def __init__(self, scales: Mapping[str, Scale], alias: Mapping[str, str], seed: int) -> None:
        self._scales, self._alias, self._seed = scales, alias, seed
        self._of = {scale.tensor.name: scale for scale in scales.values()}

    def content(self, tensor: Tensor) -> bytes:
        """What the file holds of one tensor; zeros where its dtype is of no number that is merged."""
        if tensor.name in self._scales:
            return self._codes(tensor, self._scales[tensor.name])
        if tensor.name in self._of:
            return encoded(self._values(self._of[tensor.name]), tensor.dtype)
        if tensor.dtype not in STORED or tensor.dtype == "U8":
            return bytes(stored_bytes(tensor.dtype, tensor.shape))
        noise = self._noise(tensor.name, tensor.shape)
        bare = "norm" in tensor.name and not tensor.name.endswith("bias")
        return encoded(1 + 0.1 * noise if bare else SIGMA * noise, tensor.dtype)

    def _codes(self, tensor: Tensor, scale: Scale) -> bytes:
        columns = tensor.shape[-1]
        exact = SIGMA * self._noise(tensor.name, tensor.shape).view(-1, columns)
        values = self._values(scale).view(-1, -(-columns // scale.width))
        BlockScales(values, scale.height, scale.width, tensor.shape[-2]).divide(exact, 0)
        return exact.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8).numpy().tobytes()

    def _values(self, scale: Scale) -> torch.Tensor:
        """Powers of two, whatever they are stored as."""
        chance = generator(scale.tensor.name, self._seed)
        low, high = TIGHT if chance.initial_seed() % ONE_IN == 0 else ROOMY
        return torch.exp2(torch.randint(low, high + 1, scale.tensor.shape, generator=chance).float())

    def _noise(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator(self._alias.get(name, name), self._seed))


def generator(name: str, seed: int) -> torch.Generator:
    """Chance that belongs to one tensor."""
    return torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))


def adapter(adapter: Adapter, equal: Mapping[str, tuple[str, bool]], zero: Iterable[str], seed: int) -> dict[str, torch.Tensor]:
    """float32, by name. equal  tensor → (the one that it repeats, transposed)      zero  those that must be"""
    found: dict[str, torch.Tensor] = {}
    for contribution in adapter.contributions:
        for tensor in contribution.tensors:
            noise = torch.randn(tensor.shape, generator=generator(tensor.name, seed))
            found[tensor.name] = noise * _size(contribution, tensor, adapter)
        if isinstance(contribution, Addition) and contribution.magnitude:
            found[contribution.magnitude.name] = SIGMA * math.prod(contribution.a.shape[1:]) ** 0.5 * (1 + RHO * noise)
    found |= {name: found[first].T.contiguous() if turned else found[first] for name, (first, turned) in equal.items()}
    return found | {name: torch.zeros_like(found[name]) for name in zero}


def _size(contribution: Contribution, tensor: Tensor, adapter: Adapter) -> float:
    """Of the normal numbers of one tensor: A's are of size 1, so that an element of B · A has √rank times the size of B's."""
    if isinstance(contribution, Addition | Stacked):
        if tensor is not contribution.b:
            return 1.0
        scaling = contribution.scaling if isinstance(contribution, Addition) else adapter.settings.alpha / adapter.settings.rank
        rank = contribution.a.shape[0] if isinstance(contribution, Addition) else adapter.settings.rank
        elements = contribution.b.shape[0] * math.prod(contribution.a.shape[1:])
        rho = max(RHO, CHANCE / math.sqrt(elements))
        return rho * SIGMA / (abs(scaling * adapter.weight) * math.sqrt(rank) or 1.0)
    return RHO * SIGMA if isinstance(contribution, Addend) else SIGMA
