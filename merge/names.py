"""Where an adapter's module lives in the checkpoint: the join of `NameTable` and the adapter's own names. Pure."""

from collections import Counter
from collections.abc import Mapping

from merge.nametable import NameTable, Weight


class Names:
    """One checkpoint's names, indexed by every name that an adapter may use for them."""

    def __init__(self, table: NameTable) -> None:
        self.table = table
        self._by_parameter: Mapping[str, Weight] = {w.parameter: w for w in table.weights if not w.fused}
        self._by_renamed: Mapping[str, Weight] = {w.renamed: w for w in table.weights}
        self._fillers = Counter(w.parameter for w in table.weights)
        self._shared = set(table.tied) | set(table.tied.values())

    def find(self, name: str) -> Weight | None:
        """The disk tensor behind a weight name of the adapter, whichever module tree it was trained on; a tied weight is its source."""
        parameter, renamed = self.table.aliases[name]
        own = self._by_parameter.get(parameter) or self._by_renamed.get(renamed)
        return own or self._by_parameter.get(self.table.tied.get(parameter, ""))

    def is_ambiguous(self, weight: Weight) -> bool:
        """True where another disk tensor fills the same parameter as a whole."""
        return not weight.fused and self._fillers[weight.parameter] > 1

    def is_tied(self, name: str) -> bool:
        """True where the weight shares its storage with another one."""
        return self.table.aliases[name][0] in self._shared
