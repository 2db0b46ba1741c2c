"""How much of the adapter's change is in the stored weights: sums per slab, added up in plan order.

Δ               what the adapter adds, before it is rounded          Δ'  what was stored, less the base's weight
retention       ⟨Δ', Δ⟩ / ⟨Δ, Δ⟩              1 is perfect, 0 is "nothing was merged"
error energy    ‖Δ' − Δ‖ / ‖Δ‖
subspace error  ‖(Δ' − Δ)·Q‖ / ‖Δ·Q‖          Q: the inputs that the adapter answers to (merge/subspace.py)
above floor     how much of the noise ‖Δ' − Δ‖² faithful rounding may have above the least that any rounding to neighbours can have
                which leaves no error in Q; below 0, by as much as the error that it leaves has saved

Δ lies in Q: a row of it is known by a few coordinates, and no second copy of the weight is needed.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, fields
from math import fsum
from operator import attrgetter

import torch

WARNING = 0.9  # retention below which a person is told
WHOLE = ""  # the name of the whole adapter among its tensors
DIGITS = 6  # of a figure in the manifest


@dataclass(frozen=True, slots=True)
class Sums:
    """Of one slab, or of many: along = ⟨Δ' − Δ, Δ⟩, energy = ‖Δ‖², error = ‖Δ' − Δ‖², coherent = ‖(Δ' − Δ)·Q‖².

    above  the part of `error` that faithful rounding may have too much; 0 under another rule
    """

    along: float = 0.0
    energy: float = 0.0
    error: float = 0.0
    coherent: float = 0.0
    above: float = 0.0


_VALUES = attrgetter(*(field.name for field in fields(Sums)))


def measure(inside: torch.Tensor, wanted: torch.Tensor, noise: float, above: float) -> Sums:
    """Of some vectors of a weight: (Δ' − Δ)·Q and Δ·Q, both (n, k) float32, and ‖Δ' − Δ‖²; `above` as in `Sums`."""
    inside, wanted = inside.double().flatten(), wanted.double().flatten()
    return Sums(float(inside.dot(wanted)), float(wanted.dot(wanted)), noise, float(inside.dot(inside)), above)


def folded(sums: Iterable[Sums]) -> Sums:
    """Their sum; exact, so that it does not depend on the order."""
    return Sums(*map(fsum, zip(*map(_VALUES, sums), strict=True)))


def figures(sums: Sums, rule: str, *, split: bool) -> dict[str, float]:
    """The figures by name; none where Δ is zero.

    split  what must stay whole was cut by slabs, so that its error in Q is not known
    """
    if not sums.energy:
        return {}
    found = {"retention": 1 + sums.along / sums.energy, "error_energy": (sums.error / sums.energy) ** 0.5}
    if not split:
        found["subspace_error"] = (sums.coherent / sums.energy) ** 0.5
    if rule == "faithful" and sums.error > sums.above:
        found["above_floor"] = sums.above / (sums.error - sums.above)
    return {name: _rounded(value) for name, value in found.items()}


def table(sums: Mapping[str, Sums], rule: str, split: Set[str]) -> dict[str, dict[str, float]]:
    """The figures of every tensor that has a Δ, and under WHOLE those of all of them: each tensor weighs ‖Δ‖²."""
    found = {name: figures(own, rule, split=name in split) for name, own in sorted(sums.items()) if own.energy}
    return {WHOLE: figures(folded(sums.values()), rule, split=bool(split & sums.keys())), **found} if found else {}


def lost(table: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The tensors that keep less of their Δ than `WARNING`, the worst first."""
    kept = {name: found["retention"] for name, found in table.items() if name != WHOLE}
    return sorted((name for name, value in kept.items() if value < WARNING), key=lambda name: kept[name])


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
