"""Tiny checkpoints with the real structure of a family, and adapters for them: what tests, demo and rehearsals run on."""

from merge.proxies.adapter import make_adapter
from merge.proxies.checkpoint import make_checkpoint

__all__ = ["make_adapter", "make_checkpoint"]
