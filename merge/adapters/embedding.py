"""LoRA on embeddings: the table is (tokens, features), so that what is added to it is (B · A)ᵀ.

lora_embedding_A  (rank, tokens)      lora_embedding_B  (features, rank)
"""

from collections.abc import Iterator, Mapping

from merge.adapters import dora, lora
from merge.adapters.config import Settings
from merge.adapters.contract import Addition, unwrapped
from merge.catalog import Tensor
from merge.errors import NOTHING_WRITTEN, AdapterError

A, B = ".lora_embedding_A", ".lora_embedding_B"


def claim(settings: Settings, tensors: Mapping[str, Tensor]) -> Iterator[Addition]:
    """One addition per pair."""
    for path, (a, b) in lora.pairs(tensors, A, B).items():
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            raise AdapterError(
                f"{path}: lora_embedding_A {a.shape} and lora_embedding_B {b.shape} are not (rank, tokens) and (features, rank). "
                f"{NOTHING_WRITTEN}"
            )
        names, scaling = (f"{unwrapped(path)}.weight",), settings.scaling(unwrapped(path), a.shape[0])
        yield Addition(names, a, b, scaling, embedding=True, magnitude=dora.magnitude(settings, tensors, path))
