"""One disk tensor as a model sees it, and what can be asked of a checkpoint's names; known architectures and unknown ones answer alike."""

import re
from dataclasses import dataclass
from typing import Any, Literal, Protocol

WEIGHT = re.compile(r"(.*)\.(?:in_proj_)?weight")
Orientation = Literal["out,in", "in,out"]
Kind = Literal["linear", "embedding", "convolution", "attention", "other"]


@dataclass(frozen=True, slots=True)
class Place:
    """One disk tensor that a module owns.

    key          its name on disk        parameter  the in-memory parameter that it fills
    renamed      its name after renaming, before fusion
    orientation  how its module stores a matrix, from the module's class; None where it is no linear map
    fused        several disk tensors fill the parameter (one per expert)
    tied         the parameter shares its storage with another one
    kind         what its module does
    pattern      by which of a fusion's patterns it is read; "" without a fusion
    """

    key: str
    parameter: str
    renamed: str
    orientation: Orientation | None
    fused: bool
    tied: bool
    kind: Kind = "other"
    pattern: str = ""

    def paths(self) -> set[str]:
        """Every module path that means this tensor: what `target_modules` may have been matched with."""
        names = {self.key, self.renamed} | (set() if self.fused else {self.parameter})
        return {match[1] for name in names if (match := WEIGHT.fullmatch(name))}


@dataclass(frozen=True, slots=True)
class Piece:
    """A disk tensor as a share of a parameter: part `part` of `parts` along the rows of one expert; expert None: of the whole parameter.

    flipped: the last two axes on disk are those of the parameter in the other order
    """

    key: str
    expert: int | None = None
    part: int = 0
    parts: int = 1
    flipped: bool = False


class Names(Protocol):
    """Where an adapter's names lead. all: disk key → place. embedding: the parameter of the model's input embedding, "" if it has none."""

    all: dict[str, Place]
    embedding: str
    literal: bool

    def find(self, name: str) -> Place | None:
        """The disk tensor behind a weight name of an adapter."""

    def of_parameter(self, parameter: str) -> Place | None:
        """The disk tensor that fills a parameter on its own."""

    def parameter(self, name: str) -> str:
        """The in-memory parameter that a name means."""

    def source(self, parameter: str) -> str | None:
        """The parameter whose storage this one shares, if it is tied."""

    def aliases(self, parameter: str) -> tuple[str, ...]:
        """The parameters that share this one's storage."""

    def is_head(self, parameter: str) -> bool:
        """Whether it is the weight of the model's output embedding."""

    def odd(self, parameter: str) -> str:
        """Why what PEFT puts beside the module of this weight is no change of it; "" where it is."""

    def silent(self, parameter: str) -> bool:
        """Whether the model reads this weight and never calls its module."""

    def factor(self, parameter: str) -> float:
        """By which the rows of an embedding are multiplied when they are looked up."""

    def biased(self, parameter: str) -> str:
        """The linear module with a bias that works with this weight, or with one that is tied to it."""

    def linear(self, task: str) -> tuple[str, ...]:
        """The modules that "all-linear" stands for."""

    def inside(self, name: str) -> Piece | None:
        """The share of a disk tensor that holds all experts, where a name speaks of a single one."""

    def members(self, module: str) -> tuple["Member", ...]:
        """The parameters that a module itself owns, in its own order."""

    def pieces(self, parameter: str, shapes: Any) -> tuple[Piece, ...]:
        """The disk tensors that fill a parameter."""


@dataclass(frozen=True, slots=True)
class Member:
    """A parameter of a module. transposed: the module says that it stores (in, out)."""

    parameter: str
    shape: tuple[int, ...]
    transposed: bool
