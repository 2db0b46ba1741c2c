"""`trainable_token_indices`: single rows of an embedding. They take the base's place, whatever their name says of a delta."""

from collections.abc import Iterator, Mapping

from merge.adapters.config import Settings
from merge.adapters.contract import TokenRows, unwrapped, with_suffix
from merge.catalog import Tensor
from merge.errors import NOTHING_WRITTEN, AdapterError

SUFFIX = ".token_adapter.trainable_tokens_delta"


def claim(settings: Settings, tensors: Mapping[str, Tensor]) -> Iterator[TokenRows]:
    """One contribution per embedding; raises AdapterError if the configuration names another number of rows.

    PEFT saves the rows of a grown vocabulary once more for the head that shares them, which the configuration does not name.
    """
    for path, tensor in with_suffix(tensors, SUFFIX):
        module = unwrapped(path)
        found = [rows for name, rows in settings.tokens.items() if not name or f".{module}".endswith(f".{name}")]
        twin = not found and len(settings.tokens) == 1
        found = found or (list(settings.tokens.values()) if twin else [])
        if len(found) != 1 or len(tensor.shape) != 2 or tensor.shape[0] != len(found[0]):
            named = f"{len(found[0])} rows" if len(found) == 1 else "no rows, or several lists of them"
            raise AdapterError(f"{tensor}: trainable_token_indices names {named} for it. {NOTHING_WRITTEN}")
        yield TokenRows((f"{module}.weight",), tensor, found[0], twin)
