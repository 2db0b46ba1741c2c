"""What a fault is, and where it enters the register."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from exam.cases import Case
from exam.site import Role, Site

Spoil = Callable[[Site], Tensor | None]  # what is stored instead; None: the fault makes no sense at this tensor
Plant = Callable[[Case], dict[str, Any] | None]  # spoils the copies of one case; may return how the gate is to be asked
ANYWHERE = "*"


@dataclass(frozen=True)
class Fault:
    """One way to go wrong.

    caught_by  code → the subject that it must name, an fnmatch pattern (DESIGN: each of them catches the fault on its own)
    spoil, roles  of a fault in one tensor: planted at every kind of site of these roles
    plant, family of a fault in the directories
    cause      words that the diagnosis of C4 must name          seen  where it happened
    unknown    this version interprets nothing of the kind: it must say so, by name, and certify nothing
    """

    name: str
    kind: str
    caught_by: dict[str, str]
    spoil: Spoil | None = None
    roles: tuple[Role, ...] = ()
    plant: Plant | None = None
    family: str = ""
    cause: str = ""
    seen: str = ""
    unknown: bool = False


FAULTS: dict[str, Fault] = {}


def in_tensor(*codes: str, roles: tuple[Role, ...] = ("adapted",), cause: str = "", seen: str = "") -> Callable[[Spoil], Spoil]:
    """Registers a fault in one tensor; C4 where an adapter touches it and C3 where none does, and the other codes given."""

    def register(spoil: Spoil) -> Spoil:
        enter(Fault(spoil.__name__, _kind(spoil), dict.fromkeys(codes, ANYWHERE), spoil=spoil, roles=roles, cause=cause, seen=seen))
        return spoil

    return register


def in_files(family: str, *, seen: str = "", unknown: bool = False, **caught_by: str) -> Callable[[Plant], Plant]:
    """Registers a fault in the directories of a case: code = the subject that the check must name."""

    def register(plant: Plant) -> Plant:
        enter(Fault(plant.__name__, _kind(plant), caught_by, plant=plant, family=family, seen=seen, unknown=unknown))
        return plant

    return register


def enter(fault: Fault) -> None:
    assert fault.name not in FAULTS, f"two faults are called {fault.name}"
    FAULTS[fault.name] = fault


def _kind(function: Callable[..., Any]) -> str:
    return function.__module__.rpartition(".")[2]
