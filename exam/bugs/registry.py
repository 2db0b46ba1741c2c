"""What a planted bug is, and where it enters the register."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True, slots=True)
class Bug:
    """One mistake that a programmer could make in the engine.

    module    of merge, where it is          case  of exam.bugs.inputs, where it shows
    sentence  what breaks                    plant  patches the engine in this process
    stopped   another part of the engine notices, and nothing is written
    """

    name: str
    module: str
    case: str
    sentence: str
    plant: Plant
    stopped: bool = False


BUGS: dict[str, Bug] = {}


def bug(module: str, case: str, sentence: str, *, stopped: bool = False) -> Callable[[Plant], Plant]:
    """Registers a bug under its function's name."""

    def register(plant: Plant) -> Plant:
        name = plant.__name__
        assert name not in BUGS, f"two bugs are called {name}"
        BUGS[name] = Bug(name, module, case, sentence, plant, stopped)
        return plant

    return register
