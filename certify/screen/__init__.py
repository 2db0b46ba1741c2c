"""What base and merged say about each other when the adapter is gone: advice for a reader, never a verdict."""

from certify.screen.screening import Screening, State, conclude, gathered, noted, screen
from certify.screen.tensor import Touch, look

__all__ = ["Screening", "State", "Touch", "conclude", "gathered", "look", "noted", "screen"]
