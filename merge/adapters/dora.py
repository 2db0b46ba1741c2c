"""DoRA: a weight keeps its direction from W + scaling · B · A and takes its length from the adapter.

V = W + scaling · B · A,  W ← magnitude · V / ‖V‖₂          Source: Liu et al. 2024, arXiv:2402.09353
"""

from collections.abc import Mapping

from merge.adapters.config import Settings
from merge.adapters.contract import PREFIX
from merge.catalog import Tensor
from merge.errors import NOTHING_WRITTEN, AdapterError

SUFFIXES = (".lora_magnitude_vector", ".lora_magnitude_vector.weight")  # PEFT's; the older and the others'


def magnitude(settings: Settings, tensors: Mapping[str, Tensor], path: str) -> Tensor | None:
    """The norms of one module's outputs, as stored; None unless the adapter is a DoRA. Raises AdapterError if they are missing."""
    if not settings.dora:
        return None
    names = [f"{prefix}{path}{suffix}" for prefix in (PREFIX, "") for suffix in SUFFIXES]
    found = next((tensors[name] for name in names if name in tensors), None)
    if found is None:
        raise AdapterError(f"{path}: use_dora is true, and there is no lora_magnitude_vector. {NOTHING_WRITTEN}")
    return found
