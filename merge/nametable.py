"""What an architecture calls its weights, as plain data: every disk key's parameter, layout and tie."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Layout = Literal["linear", "conv1d", "other"]  # stored (out, in); stored (in, out); anything else


@dataclass(frozen=True, slots=True)
class Weight:
    """One disk tensor as the architecture sees it.

    key        its name in the checkpoint
    parameter  the in-memory parameter that it fills
    renamed    its name after today's renamings, before any fusion: what adapters of older module trees meet
    layout     how its module stores a weight, from the module's class, never from the shape
    fused      several disk tensors are fused into the parameter (stacked experts)
    """

    key: str
    parameter: str
    renamed: str
    layout: Layout
    fused: bool


@dataclass(frozen=True, slots=True)
class NameTable:
    """Every name space that an adapter may speak, joined for one checkpoint.

    weights    one per disk key that a module owns
    unmatched  disk keys that no module owns (MTP layers, quantiser scales): carried byte for byte
    aliases    adapter weight name → (parameter, renamed), by the same renamings that the disk keys went through
    tied       parameter → the parameter whose storage it shares
    modules    path → layout of every linear module of the tree: what `target_modules` can name
    embedding  disk key of the input embeddings, if the checkpoint has them
    """

    architecture: str
    weights: tuple[Weight, ...]
    unmatched: tuple[str, ...]
    aliases: Mapping[str, tuple[str, str]]
    tied: Mapping[str, str]
    modules: Mapping[str, Layout]
    embedding: str | None
