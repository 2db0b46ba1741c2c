"""An adapter directory: its configuration as JSON, its tensors by name, read one at a time."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from certify.errors import DamagedError
from certify.inputs.dtypes import NAMES
from certify.inputs.header import read_header
from certify.inputs.stored import Stored
from certify.inputs.strict_json import read_object

CONFIG = "adapter_config.json"
SAFE = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"  # ColossalAI's default


@dataclass(frozen=True, slots=True, eq=False)
class AdapterTensor:
    """One tensor of an adapter; `source` is its place on disk, or the memory-mapped tensor of a pickle. Two are never the same."""

    dtype: str
    shape: tuple[int, ...]
    source: Stored | torch.Tensor

    @property
    def decoded(self) -> bool:
        return False

    def load(self) -> torch.Tensor:
        """The tensor in its stored dtype. Raises DamagedError where the file ends early."""
        return self.source if isinstance(self.source, torch.Tensor) else self.source.load()

    def spans(self, counts: Iterable[int]) -> Iterator[torch.Tensor]:
        """The tensor flattened, in pieces of so many elements each, in its stored dtype."""
        if isinstance(self.source, torch.Tensor):
            flat, counts = self.source.reshape(-1), list(counts)
            yield from torch.split(flat[: sum(counts)], counts)
        else:
            yield from self.source.spans(counts)

    def described(self) -> str:
        return f"{self.dtype} {self.shape}"


@dataclass(frozen=True)
class Adapter:
    """problems: (file, sentence) for everything that cannot be read; the rest is what can."""

    directory: Path
    config: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, AdapterTensor] = field(default_factory=dict)
    problems: tuple[tuple[str, str], ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        return (CONFIG, SAFE if (self.directory / SAFE).is_file() or not (self.directory / PICKLE).is_file() else PICKLE)


def open_adapter(directory: Path) -> Adapter:
    """Reads configuration and headers. Never raises for what the directory holds."""
    problems: list[tuple[str, str]] = []
    config: dict[str, Any] = {}
    tensors: dict[str, AdapterTensor] = {}
    try:
        config = read_object(directory / CONFIG)
    except DamagedError as error:
        problems.append((CONFIG, str(error)))
    weights = Adapter(directory).files[1]
    if not (directory / weights).is_file():
        problems.append((weights, f"neither {SAFE} nor {PICKLE} exists"))
    elif weights == SAFE:
        header = read_header(directory / SAFE)
        problems += [(SAFE, problem) for problem in header.problems]
        tensors = {name: AdapterTensor(e.dtype, e.shape, Stored(directory / SAFE, e)) for name, e in header.entries.items()}
    else:
        try:
            tensors = _unpickle(directory / PICKLE)
        except DamagedError as error:
            problems.append((PICKLE, str(error)))
    return Adapter(directory, config, tensors, tuple(problems))


def _unpickle(path: Path) -> dict[str, AdapterTensor]:
    """The tensors of a zip-format pickle, memory-mapped; only tensors and plain containers are ever unpickled."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError … for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DamagedError(f"no memory-mappable weights-only pickle: {reason}") from error
    if not isinstance(loaded, dict) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in loaded.items()):
        raise DamagedError("holds something else than a map of names to tensors")
    if unusual := sorted((name, kind) for name, tensor in loaded.items() if (kind := _unusual(tensor))):
        raise DamagedError(f"{unusual[0][0]} is {unusual[0][1]}; plain tensors are read")
    return {name: AdapterTensor(NAMES.get(t.dtype, str(t.dtype)), tuple(t.shape), t.detach()) for name, t in loaded.items()}


def _unusual(tensor: torch.Tensor) -> str:
    """What a tensor is that holds its numbers otherwise than one after another in memory; empty for all others."""
    if tensor.is_meta:
        return "a meta tensor, which has no numbers"
    if tensor.is_quantized:
        return f"a quantised tensor ({tensor.dtype})"
    return "" if tensor.layout == torch.strided else f"a sparse tensor ({tensor.layout})"
