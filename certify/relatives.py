"""The touched tensors that could have been mistaken for one another: the same shape and dtype, the nearest in name first."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from certify.bounds import Delta
from certify.expect.expectation import factors
from certify.expect.ledger import Ledger
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.stored import Stored

MOST = 256  # relatives of one tensor; DeepSeek-V3 has 256 experts a layer


@dataclass(frozen=True)
class Relative:
    """Another touched tensor: its base, and its deltas when asked (they are read from the adapter)."""

    name: str
    base: Stored
    deltas: Callable[[], list[Delta]]


class Relatives:
    """All touched tensors, by shape and dtype, in natural order: expert 10 after expert 9."""

    def __init__(self, ledger: Ledger, base: Checkpoint) -> None:
        self._ledger, self._base = ledger, base
        self._alike: dict[str, list[str]] = {}
        for name in sorted(ledger.parts.keys() & base.tensors.keys(), key=_natural):
            self._alike.setdefault(base.tensors[name].described(), []).append(name)

    def of(self, name: str) -> Iterator[Relative]:
        """At most MOST of them."""
        alike = self._alike[self._base.tensors[name].described()]
        here = alike.index(name)
        near = sorted(range(max(0, here - MOST), min(len(alike), here + MOST + 1)), key=lambda place: abs(place - here))
        for place in near[1 : MOST + 1]:
            yield Relative(alike[place], self._base.tensors[alike[place]], partial(self._deltas, alike[place]))

    def _deltas(self, name: str) -> list[Delta]:
        return [factors(part) for part in self._ledger.parts[name]]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts numbers by value."""
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part) for part in re.split(r"([0-9]+)", name)]
