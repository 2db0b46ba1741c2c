"""A merge that is about to be spoiled, and the list of what can be wrong with it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from exam.giants.bench import Way
from exam.giants.folder import Folder, adapter_delta, encode, spread

SCALE = "_scale_inv"


@dataclass
class Scene:
    """A merge that is about to be spoiled."""

    base: Folder
    adapter: Path
    merged: Folder

    def base_value(self, key: str, block: tuple[int, int] = (128, 128)) -> Tensor:
        """Code × scale, float64; another block size is a fault."""
        codes = self.base.tensors[key].double()
        return codes * spread(self.base.tensors[key + SCALE], codes.shape, block).double()

    def due(self, key: str, block: tuple[int, int] = (128, 128)) -> Tensor:
        """W + Δ, float64."""
        return self.base_value(key, block) + adapter_delta(self.adapter, key)

    def rescale(self, key: str, scales: Tensor, values: Tensor) -> None:
        """Other scales, and the codes that are right on them."""
        self.merged.tensors[key + SCALE] = scales.to(self.merged.tensors[key + SCALE].dtype)
        self.merged.tensors[key] = encode(values, self.merged.tensors[key + SCALE])


Plant = Callable[[Scene], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """caught: (check, subject) of what must fail, each by itself. criterion: where it is not the one that the merge was made for."""

    name: str
    proxy: str
    way: Way
    caught: tuple[tuple[str, str], ...]
    plant: Plant
    criterion: str = ""


FAULTS: list[Fault] = []


def fault(name: str, way: Way, *caught: tuple[str, str], proxy: str = "deepseek-v3-fp8", criterion: str = "") -> Callable[[Plant], Plant]:
    """Enters what is below it into the list."""

    def entered(plant: Plant) -> Plant:
        FAULTS.append(Fault(name, proxy, way, caught, plant, criterion))
        return plant

    return entered
