"""From float32 to the stored grid: to the nearest point, or to one of the two neighbours so that the adapter's change survives."""

from merge.rounding.ascent import Ascent
from merge.rounding.chance import draws, stochastic
from merge.rounding.grid import Bracket, Floats
from merge.rounding.plain import nearest
from merge.rounding.space import Space
from merge.rounding.span import Span

__all__ = ["ROUNDS", "RULES", "Ascent", "Bracket", "Floats", "Space", "Span", "draws", "nearest", "stochastic"]

RULES = ("nearest", "faithful", "stochastic")
ROUNDS = 8  # of faithful, at most: where the subspace error has levelled off on every grid measured (merge/DECISIONS.md)
