"""`modules_to_save`: modules that were trained whole, and take the place of the base's."""

from collections.abc import Iterator, Mapping

from merge.adapters.config import Settings
from merge.adapters.contract import Replacement, strip
from merge.catalog import Tensor


def claim(settings: Settings, tensors: Mapping[str, Tensor]) -> Iterator[Replacement]:
    """One replacement per tensor that lies in a module named by `modules_to_save`."""
    for name, tensor in tensors.items():
        path = strip(name)
        module = path.rpartition(".")[0]
        if ".lora_" not in name and settings.saves(module):
            yield Replacement(path, tensor)
