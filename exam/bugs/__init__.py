"""Bugs planted in the engine, by kind; the gate, which shares nothing with it, must refuse what comes out."""

from exam.bugs import files, kinds, meaning, numbers, placing  # noqa: F401
from exam.bugs.registry import BUGS, Bug

__all__ = ["BUGS", "Bug"]
