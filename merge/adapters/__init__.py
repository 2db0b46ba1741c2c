"""What an adapter's tensors mean. One small file per variant; a new one is a file and a line in `VARIANTS`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from merge.adapters import bias, embedding, experts, lora, replace, tokens
from merge.adapters.config import Settings
from merge.adapters.contract import Contribution, Variant
from merge.catalog import Tensor
from merge.errors import NOTHING_WRITTEN, AdapterError, listing

VARIANTS: tuple[Variant, ...] = (lora.claim, embedding.claim, experts.claim, bias.claim, tokens.claim, replace.claim)


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter as planning sees it.

    index          its place on the command line
    tensors        its headers, by name
    weight         the factor that the user gave it
    contributions  everything that it asks for, in its own names
    """

    index: int
    settings: Settings
    tensors: Mapping[str, Tensor]
    weight: float
    contributions: tuple[Contribution, ...]

    @classmethod
    def of(cls, index: int, settings: Settings, tensors: Mapping[str, Tensor], weight: float = 1.0) -> "Adapter":
        """Raises AdapterError unless each tensor is claimed by exactly one variant, exactly once."""
        found = tuple(contribution for claim in VARIANTS for contribution in claim(settings, tensors))
        claims = Counter(tensor.name for contribution in found for tensor in contribution.tensors)
        astray = [str(tensor) for name, tensor in tensors.items() if claims[name] != 1]
        if astray:
            raise AdapterError(
                f"{len(astray)} adapter tensors are of a kind that this version does not merge\n{listing(astray)}\n{NOTHING_WRITTEN}"
            )
        if not found:
            raise AdapterError(f"the adapter holds no tensors. {NOTHING_WRITTEN}")
        return cls(index, settings, tensors, weight, found)
