"""What an architecture calls its weights, as plain data: every disk key's parameter, layout and tie."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# stored (out, in); (in, out); (tokens, features); (out, in, …); a parameter of its own, such as stacked experts; a weight that the model
# reads without calling its module; of a module that does more with it than the class that it derives from; of an architecture that nobody
# knows; anything else
Layout = Literal["linear", "conv1d", "embedding", "convolution", "parameter", "bypassed", "foreign", "unknown", "other"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one expert's matrix lies in the parameter that holds them all: `part` of `parts` equal runs of its rows."""

    expert: int
    part: int = 0
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Weight:
    """One disk tensor as the architecture sees it.

    key        its name in the checkpoint
    parameter  the in-memory parameter that it fills
    renamed    its name after today's renamings, before any fusion: what adapters of older module trees meet
    layout     how its module stores a weight, from the module's class, never from the shape
    fused      several disk tensors are fused into the parameter
    piece      which part of it this one is, where the fusion is a plain stacking of experts
    flipped    the parameter holds each matrix transposed; None: wherever the shapes differ, as the loader itself decides
    """

    key: str
    parameter: str
    renamed: str
    layout: Layout
    fused: bool
    piece: Piece | None = None
    flipped: bool | None = False


@dataclass(frozen=True, slots=True)
class Alias:
    """What an adapter's weight name means in the tree of today: its parameter, the name before fusion, the expert it speaks of."""

    parameter: str
    renamed: str
    piece: Piece | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """A module with parameters of its own: their names and shapes in the order of registration.

    transposed  the module's class says that it stores (in, out) per expert
    """

    parameters: Mapping[str, tuple[int, ...]]
    transposed: bool


@dataclass(frozen=True, slots=True)
class NameTable:
    """Every name space that an adapter may speak, joined for one checkpoint.

    weights    one per disk key that a module owns
    unmatched  disk keys that no module owns (MTP layers, quantiser scales): carried byte for byte
    aliases    adapter weight name → its meaning, by the same renamings that the disk keys went through
    tied       parameter → the parameter whose storage it shares
    modules    path → layout of every module that `target_modules` can name
    embedding  disk key of the input embeddings, if the checkpoint has them
    owners     path → module that has parameters of two or three dimensions, of its own
    absent     parameters that no disk key fills: tied ones, and those of a new head
    embeddings parameters of the input and of the output embeddings
    head       the parameter of the output embedding, if the architecture has one
    linear     paths of every linear module, by its class
    scaled     parameters of embeddings whose rows are multiplied by a number when they are looked up
    foreign    path → class of every module that does more with its weight than the class that it derives from
    encoder_decoder  the flag of a tie decides more than the tie there
    """

    architecture: str
    weights: tuple[Weight, ...]
    unmatched: tuple[str, ...]
    aliases: Mapping[str, Alias]
    tied: Mapping[str, str]
    modules: Mapping[str, Layout]
    embedding: str | None
    owners: Mapping[str, Owner] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    embeddings: tuple[str, ...] = ()
    head: str | None = None
    linear: tuple[str, ...] = ()
    scaled: frozenset[str] = frozenset()
    foreign: Mapping[str, str] = field(default_factory=dict)
    encoder_decoder: bool = False
    known: bool = True
