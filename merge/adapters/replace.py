"""Modules that were saved whole: `modules_to_save` were trained, and embeddings are saved beside a LoRA or after the vocabulary grew."""

from collections.abc import Iterator, Mapping

from merge.adapters import tokens
from merge.adapters.config import Settings
from merge.adapters.contract import Replacement, Snapshot, strip, unwrapped
from merge.catalog import Tensor


def claim(settings: Settings, tensors: Mapping[str, Tensor]) -> Iterator[Replacement | Snapshot]:
    """One replacement per tensor that lies in a module named by `modules_to_save`, one snapshot per other whole weight."""
    for name, tensor in tensors.items():
        path = strip(name)
        module, _, leaf = path.rpartition(".")
        if ".lora_" in name or name.endswith(tokens.SUFFIX) or ".original_module." in name or ".modules_to_save." in name:
            continue
        if settings.saves(unwrapped(module)):
            yield Replacement((unwrapped(path),), tensor)
        elif leaf == "weight" and not settings.may_train_bias(path):
            yield Snapshot((unwrapped(path),), tensor)
