"""How small each size in a config.json becomes, so that what is equal stays equal and products stay products. Pure.

A section is a part of the configuration that describes one stack of layers: the text model, a vision tower. In each, the dimensions of a
head are divided by one number and the counts of heads by another; what is as wide as all heads together is divided by their product.
Layers and experts keep their number, since every key is kept.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 320  # rows: bytes, specials, and spare ones for tokens that the configuration names
POSITIONS = 64
EVEN = 2  # rotary embeddings turn pairs
ROLES: Mapping[str, re.Pattern[str]] = {
    role: re.compile(names)
    for role, names in {
        "vocabulary": r"\w*vocab_size\w*",
        "head": r"\w*head_dim|head_size|d_kv|kv_channels|rotary_dim|mrope_section",
        "heads": r"\w*num_\w*heads|\w*attention_heads|n_heads?|\w+_n_heads|multi_query_group_num",
        "width": r"\w*hidden_size\w*|hidden_dim|n_embd|d_model|dim|d_ff|n_inner|\w*ffn\w*_(dim|size)|\w*intermediate_size\w*|\w*lora_rank"
        r"|\w*embed_dim|embedding_size|\w*proj(ection|ector)?_(input_|output_)?dim|vision_output_dim",
        "positions": r"n_positions|n_ctx|max_position_embeddings|max_\w+_positions",
        "token": r"\w*token_(id|index)s?",
    }.items()
}


def role(name: str) -> str | None:
    """What a field of a configuration measures, by its name; None where it is kept as it is."""
    return next((found for found, pattern in ROLES.items() if pattern.fullmatch(name)), None)


def numbers(value: Any) -> tuple[int, ...]:
    """The whole numbers of one field."""
    values = value if isinstance(value, list) else [value]
    return tuple(number for number in values if type(number) is int and number > 0)


@dataclass(frozen=True, slots=True)
class Section:
    """One stack of layers in a configuration: role → the numbers that its fields hold."""

    held: Mapping[str, tuple[int, ...]]
    partial: float = 1.0

    def of(self, role: str) -> tuple[int, ...]:
        return self.held.get(role, ())

    @property
    def implicit(self) -> int | None:
        """The dimension of a head that no field names: the width over the number of heads."""
        heads, widths = self.of("heads"), self.of("width")
        found = [width // max(heads) for width in widths[:1] if heads and not self.of("head") and width % max(heads) == 0]
        return found[0] if found else None

    def divisors(self, factor: int) -> tuple[int, int]:
        """(of a head's dimensions, of the counts of heads): their product is the largest up to `factor`; two key heads stay if they can."""
        dims, counts = self.of("head") or ((self.implicit,) if self.implicit else ()), self.of("heads")
        pairs = [(d, h) for d in _divisors(dims) if self._fits(dims, d) for h in _divisors(counts) if d * h <= factor]
        two = min(EVEN, min(counts, default=1))
        return max(pairs, key=lambda pair: (pair[0] * pair[1], min(counts, default=1) // pair[1] >= two, pair[0]))

    def _fits(self, dims: tuple[int, ...], divisor: int) -> bool:
        """Every pair that is turned stays a pair."""
        small = [(dim // divisor, dim) for dim in dims]
        turned = [int(max(dims) // divisor * self.partial)] if dims and self.partial < 1 else []
        return divisor == 1 or (
            all(n % EVEN == 0 or dim % EVEN or dim < 32 for n, dim in small) and all(n and n % EVEN == 0 for n in turned)
        )


def _divisors(values: tuple[int, ...]) -> list[int]:
    whole = math.gcd(*values) if values else 1
    return [n for n in range(1, whole + 1) if whole % n == 0]


@dataclass
class Cut:
    """One way to make a configuration small.

    factor       what widths are divided by, about
    block, unit  heights of a block of scales, the real one and the small one: a multiple of one becomes a multiple of the other
    dims         sizes of tensors: a limit of positions is cut only where there is a tensor that long
    """

    factor: int
    block: int
    unit: int
    dims: frozenset[int]
    widths: dict[int, int] = field(default_factory=dict)
    vocabularies: dict[int, int] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)

    def config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The small configuration."""
        for value in sorted({n for section in _sections(config) for n in section.of("vocabulary") if n > VOCABULARY}):
            self.vocabularies[value] = VOCABULARY + self.unit * len(self.vocabularies)
        beyond = sorted({n for section in _sections(config) for n in section.of("token") if n >= VOCABULARY}, reverse=True)
        self.tokens = {token: VOCABULARY - 1 - place for place, token in enumerate(beyond)}
        return self._section(config)

    def side(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """generation_config.json, whose tokens are those of the configuration."""
        return {name: self._number("token", value, (1, 1)) if role(name) == "token" else value for name, value in config.items()}

    def rows(self, count: int) -> int | None:
        """Of an embedding that an adapter has resized; None where it resembles no vocabulary."""
        near = min(self.vocabularies, key=lambda size: abs(count - size), default=None)
        if near is None or abs(count - near) > near // 8:
            return None
        return self.vocabularies[near] + max(-self.unit, min(count - near, VOCABULARY // 2))

    def _section(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A section, those below it after it: they refer to its widths, and not the other way round."""
        inner = sorted((name for name, value in config.items() if _is_section(value)), key=lambda name: "text" not in name)
        own = _own(config)
        if not own.of("width"):
            below = {name: self._section(config[name]) for name in inner}
            return {**self._fields(config, (1, 1)), **below}
        divisors = own.divisors(self.factor)
        self._choose(own.of("width"), math.prod(divisors) if own.implicit else self.factor)
        found = self._fields(config, divisors)
        return {name: self._section(config[name]) if name in inner else value for name, value in found.items()}

    def _choose(self, widths: tuple[int, ...], factor: int) -> None:
        """Distinct widths stay distinct, in their order."""
        last = 0
        for width in sorted(set(widths)):
            if width not in self.widths:
                unit = self.unit if width % self.block == 0 else EVEN
                small = max(-(-width // (factor * unit)) * unit, last // unit * unit + unit)
                self.widths[width] = width if factor == 1 else min(width, small)
            last = max(last, self.widths[width])

    def _fields(self, config: Mapping[str, Any], divisors: tuple[int, int]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in config.items():
            kind = role(name)
            if isinstance(value, dict) and not _is_section(value) and name not in ("quantization_config", "compression_config"):
                found[name] = self._fields(value, divisors)
            else:
                found[name] = self._number(kind, value, divisors) if kind else value
        return found

    def _number(self, kind: str, value: Any, divisors: tuple[int, int]) -> Any:
        if isinstance(value, list):
            return [self._number(kind, one, divisors) for one in value]
        if type(value) is not int or value <= 0:
            return value
        match kind:
            case "width":
                return self.widths.get(value, value)
            case "head":
                return value // divisors[0]
            case "heads":
                return value // divisors[1]
            case "vocabulary":
                return self.vocabularies.get(value, value)
            case "positions" if value in self.dims:
                return self.widths.get(value, min(value, POSITIONS))
            case "token":
                return self.tokens.get(value, value)
        return value


def _is_section(value: Any) -> bool:
    return isinstance(value, dict) and (bool(_own(value).of("width")) or any(_is_section(inner) for inner in value.values()))


def _own(config: Mapping[str, Any]) -> Section:
    """What one section holds itself, its rope settings included."""
    held: dict[str, tuple[int, ...]] = {}
    flat = [
        *config.items(),
        *(item for value in config.values() if isinstance(value, dict) and not _has_width(value) for item in value.items()),
    ]
    for name, value in flat:
        kind = role(name)
        if kind:
            held[kind] = (*held.get(kind, ()), *numbers(value))
    partial = [value for name, value in flat if name == "partial_rotary_factor" and isinstance(value, float)]
    return Section(held, min(partial, default=1.0))


def _has_width(config: Mapping[str, Any]) -> bool:
    return any(role(name) == "width" and numbers(value) for name, value in config.items())


def _sections(config: Mapping[str, Any]) -> Iterator[Section]:
    yield _own(config)
    for value in config.values():
        if isinstance(value, dict):
            yield from _sections(value)
