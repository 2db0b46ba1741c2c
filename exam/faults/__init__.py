"""Planted faults, by kind; each names the checks that must catch it."""

from exam.faults import accounts, arithmetic, damage, factors, files, names, parts, places, side, storage, unread  # noqa: F401
from exam.faults.registry import FAULTS, Fault

__all__ = ["FAULTS", "Fault"]
