"""Where an adapter's module lives in the checkpoint: the join of `NameTable` and the adapter's own names. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from merge.nametable import NameTable, Weight


class Names:
    """One checkpoint's names, indexed by every name that an adapter may use for them."""

    def __init__(self, table: NameTable) -> None:
        self.table = table
        self._by_renamed: Mapping[str, Weight] = {w.renamed: w for w in table.weights}
        self.fillers: Mapping[str, list[Weight]] = defaultdict(list)
        for weight in table.weights:
            self.fillers[weight.parameter].append(weight)
        self._whole = {weight.parameter: weight for weight in reversed(table.weights) if not weight.fused}

    def parameter(self, names: Iterable[str]) -> tuple[str, str] | None:
        """(the one of these names that exists, its parameter): on disk, tied to one that is, or of a head that the base has not."""
        for name in names:
            found = self.table.aliases[name]
            if self.find(name) or found.parameter in self.table.absent:
                return name, found.parameter
        return None

    def find(self, name: str) -> Weight | None:
        """The disk tensor behind a weight name of the adapter, whichever module tree it was trained on."""
        found = self.table.aliases[name]
        own = self.whole(found.parameter)
        return (own if found.piece is None else None) or self._by_renamed.get(found.renamed) or own

    def whole(self, parameter: str) -> Weight | None:
        """The disk tensor that fills a parameter by itself."""
        return self._whole.get(parameter)

    def exists(self, parameter: str) -> bool:
        """True where the architecture has such a parameter, whether or not a disk tensor fills it."""
        return bool(self.fillers.get(parameter)) or parameter in self.table.absent

    def sharing(self, parameter: str) -> tuple[str, ...]:
        """The parameters that share one storage with this one, itself among them."""
        source = self.table.tied.get(parameter, parameter)
        return source, *(other for other, its in self.table.tied.items() if its == source)

    def is_ambiguous(self, weight: Weight) -> bool:
        """True where another disk tensor fills the same parameter as a whole."""
        return not weight.fused and len(self.fillers[weight.parameter]) > 1
