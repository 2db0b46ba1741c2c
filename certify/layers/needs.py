"""How much memory a forward from disk will take: an upper estimate from shapes alone, held against what there is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from certify.finding import Figure
from certify.layers.inputs import TOKENS
from certify.layers.lazy import ROWS_ELEMENTS
from certify.layers.meter import available

if TYPE_CHECKING:
    from certify.layers.forward import Forward

FLOAT32 = 4  # bytes
BLOCKS = 64 << 20  # bytes: the float64 intervals of one block of rows, and the bytes it was read from
ANSWERS = 8  # of a unit, alive at once: four versions, their differences, and what a unit computes on the way to one


@dataclass(frozen=True, slots=True)
class Needs:
    """largest: numbers read at once, of which parameter; total: bytes in all; free: bytes there are, None where nobody tells."""

    largest: int
    name: str
    total: int
    free: int | None

    @classmethod
    def of(cls, forward: "Forward") -> "Needs":
        """From the shapes of the parameters and of the adapter."""
        largest, name = max(_at_once(forward, unit, path) for unit in forward.units.values() for path in unit.parameters)
        widest = max((max(p.shape) for unit in forward.units.values() for p in unit.skeleton.parameters() if p.dim()), default=1)
        factors = max(
            (sum(a.part.a.shape[0] * (a.part.a.shape[1] + a.part.b.shape[0]) for key in unit.touched for a in _trained(forward, key))
             for unit in forward.units.values()), default=0,
        )  # fmt: skip
        total = FLOAT32 * (2 * largest + ANSWERS * TOKENS * widest + factors) + BLOCKS
        return cls(largest, name, total, available())

    @property
    def short(self) -> bool:
        return self.free is not None and self.total > self.free

    def sentence(self) -> str:
        """For a person."""
        there = "" if self.free is None else f"; {_mib(self.free)} are free"
        piece = f"the largest piece is {self.name} ({self.largest:,} numbers)"
        return f"running the layers needs up to {_mib(self.total)} beside the libraries; {piece}{there}"

    def figures(self) -> dict[str, Figure]:
        return {"needed_bytes": self.total, "available_bytes": self.free, "largest": self.largest}


def _at_once(forward: "Forward", unit: Any, path: str) -> tuple[int, str]:
    """How many numbers of one parameter are read at once: a matrix, one expert of a stack, or the whole stack where the model insists."""
    name = f"{unit.path}.{path}"
    filling = forward.weights.layout.filling(name)
    shape = (
        unit.skeleton.get_parameter(path).shape if path in dict(unit.skeleton.named_parameters()) else unit.skeleton.get_buffer(path).shape
    )
    if filling is None:
        return 0, name
    if len(shape) == 3 and path.rpartition(".")[0] in unit.experts and _one_by_one(forward.model):
        return shape[1:].numel(), f"{name}[expert]"
    return min(shape.numel(), ROWS_ELEMENTS) if len(shape) == 2 and _looked_up(unit, path) else shape.numel(), name


def _looked_up(unit: Any, path: str) -> bool:
    """Whether a module is an embedding or a linear map, of which only some rows are read at once."""
    module = unit.skeleton.get_submodule(path.rpartition(".")[0])
    return type(module).__name__.endswith(("Embedding", "Linear"))


def _one_by_one(model: Any) -> bool:
    """Whether the model's experts are indexed one by one ("eager"); transformers tells by a method of its own."""
    asked = getattr(type(model), "_can_set_experts_implementation", None)
    return bool(asked and asked())


def _trained(forward: "Forward", key: str) -> Any:
    return () if forward.weights.layout.all[key].fused else forward.weights.unmerged.trained.get(key, ())


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
