"""Modules that were saved whole: `modules_to_save` were trained, and embeddings are saved beside a LoRA or after the vocabulary grew."""

import re
from collections.abc import Iterator, Mapping

from merge.adapters import tokens
from merge.adapters.config import Settings
from merge.adapters.contract import Again, Replacement, Snapshot, strip, unwrapped
from merge.catalog import Tensor

COPIES = re.compile(r"(.*)\.(modules_to_save|original_module)\.(.+)")  # of a module that PEFT wrapped to train it whole


def claim(settings: Settings, tensors: Mapping[str, Tensor]) -> Iterator[Replacement | Snapshot | Again]:
    """One replacement per tensor that lies in a module named by `modules_to_save`, one snapshot per other whole weight."""
    for name, tensor in tensors.items():
        path = strip(name)
        module, _, leaf = path.rpartition(".")
        if ".lora_" in name or name.endswith(tokens.SUFFIX):
            continue
        if copy := COPIES.fullmatch(path):
            if settings.saves(unwrapped(copy[1])):
                yield Again((f"{unwrapped(copy[1])}.{copy[3]}",), tensor, trained=copy[2] == "modules_to_save")
        elif settings.saves(unwrapped(module)):
            yield Replacement((unwrapped(path),), tensor)
        elif leaf == "weight" and not settings.may_train_bias(path):
            yield Snapshot((unwrapped(path),), tensor)
