"""What an adapter_config.json says about a merge, field by field. What is not understood is named, never guessed.

Source of the semantics: peft 0.21.2, tuners/lora/config.py and utils/other.py:get_pattern_key.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from certify.errors import DamagedError, NotInterpretedError
from certify.expect.targets import Targets, listed, named, read_targets

WITHOUT_EFFECT: Final = {  # the last four say how an initialisation went, which `init_lora_weights` names, and where the layers were split
    "lora_dropout", "fan_in_fan_out", "inference_mode", "runtime_config", "eva_config", "auto_mapping",
    "qalora_group_size", "base_model_name_or_path", "revision", "peft_version", "task_type",
    "corda_config", "loftq_config", "lora_ga_config", "megatron_config", "megatron_core",
}  # fmt: skip
IMPORTS: Final = ("megatron_config",)  # PEFT imports the module that megatron_core names
INTERPRETED: Final = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "modules_to_save",
    "layers_to_transform", "layers_pattern", "init_lora_weights", "bias", "lora_bias", "use_dora", "target_parameters", "lora_B_layout",
    "trainable_token_indices", "ensure_weight_tying", "layer_replication",
}  # fmt: skip
PLAIN_INITS: Final = (True, False, "gaussian", "eva", "orthogonal")  # those that leave the base as it is
KNOWN_VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "peft_type": ("LORA",),
    "bias": ("none", "all", "lora_only"),
    "init_lora_weights": PLAIN_INITS,
    "lora_B_layout": ("rank_major", "grouped_by_expert"),
    **dict.fromkeys(("use_rslora", "use_dora", "lora_bias", "ensure_weight_tying"), (True,)),
}


@dataclass(frozen=True)
class Patterns:
    """A dictionary of PEFT's name patterns. `value` is PEFT's: the first match.

    PEFT saves the dictionary sorted: if two matches disagree, training and reload differ and nobody can tell from the file which was meant.
    """

    entries: tuple[tuple[re.Pattern[str], str, float], ...]

    def value(self, path: str, default: float) -> float:
        """Of the entries that match `path`, or the default. Raises NotInterpretedError where they disagree."""
        found = {key: value for pattern, key, value in self.entries if pattern.match(path)}
        if len(set(found.values())) > 1:
            raise NotInterpretedError(f"the patterns {', '.join(map(repr, found))} disagree about {path}")
        return float(next(iter(found.values()), default))


@dataclass(frozen=True)
class Terms:
    """The fields that decide a LoRA merge, with PEFT's defaults for those that are absent.

    tokens       module → rows that are replaced; "" stands for the model's input embedding
    replication  source layers of the trained stack, in order; None: the base's own
    version      (0, 21, 2) of the PEFT that wrote the file; None: not said, so at most 0.17
    """

    r: int
    alpha: float
    rslora: bool
    rank_pattern: Patterns
    alpha_pattern: Patterns
    modules: Targets
    parameters: tuple[str, ...] = ()
    bias: str = "none"
    lora_bias: bool = False
    dora: bool = False
    grouped: bool = False
    tokens: dict[str, tuple[int, ...]] = field(default_factory=dict)
    replication: tuple[int, ...] | None = None
    version: tuple[int, ...] | None = None
    task: str = ""

    def rank(self, path: str) -> int:
        return int(self.rank_pattern.value(path, self.r))

    def scaling(self, path: str) -> float:
        """The factor of B·A for the module at `path`: α/r, or α/√r with rsLoRA. Raises NotInterpretedError where patterns disagree."""
        rank, alpha = self.rank(path), self.alpha_pattern.value(path, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def targets(self, paths: Iterable[str]) -> bool:
        """True if any of a module's paths is one that the adapter was told to train."""
        return self.modules.hit(tuple(paths))

    def targets_parameter(self, name: str) -> bool:
        """True if the adapter was told to train this parameter directly."""
        return named(self.parameters, name)

    def rows_of(self, path: str, *, embedding: bool) -> tuple[int, ...]:
        """The rows of a module that the adapter replaces. embedding: it may be the one that a bare list means."""
        found = next((rows for name, rows in self.tokens.items() if name and (path == name or path.endswith(f".{name}"))), ())
        return found or (self.tokens.get("", ()) if embedding else ())

    def saves(self, path: str) -> bool:
        """True if the module at `path`, or one around it, was trained and saved whole: PEFT asks whether its path ends so."""
        parts = path.split(".")
        around = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        return any(module.endswith(name) for module in around for name in self.modules.saved)


def uninterpreted(config: dict[str, Any]) -> list[str]:
    """The fields that say something which this version cannot judge, each as `name = value`."""
    found = []
    for name, value in sorted(config.items()):
        if name in WITHOUT_EFFECT or value in (None, False) or value in ({}, []):
            continue
        if name not in INTERPRETED or not _known(value, KNOWN_VALUES.get(name)):
            found.append(f"{name} = {value!r}")
    if "peft_type" not in config:
        found.append("peft_type is absent")
    if config.get("target_modules") is None and not config.get("target_parameters"):
        found.append("target_modules = None: PEFT would choose the modules by the architecture")
    return found


def plain_lora(config: dict[str, Any]) -> bool:
    """True if PEFT may be asked about this adapter: it is a LoRA, nothing in it is unknown, and nothing is imported for it."""
    return not uninterpreted(config) and not any(config.get(name) for name in IMPORTS)


def read_terms(config: dict[str, Any]) -> Terms:
    """The terms of a LoRA. Raises DamagedError if a field has a value of the wrong kind."""
    try:
        return Terms(
            r=_positive(config.get("r", 8)),
            alpha=_number(config.get("lora_alpha", 8)),
            rslora=config.get("use_rslora") is True,
            rank_pattern=_patterns(config.get("rank_pattern"), _positive),
            alpha_pattern=_patterns(config.get("alpha_pattern"), _number),
            modules=read_targets(config),
            parameters=listed(config, "target_parameters"),
            bias=str(config.get("bias") or "none"),
            lora_bias=config.get("lora_bias") is True,
            dora=config.get("use_dora") is True,
            grouped=config.get("lora_B_layout") == "grouped_by_expert",
            tokens=_tokens(config.get("trainable_token_indices")),
            replication=_replication(config.get("layer_replication")),
            version=_version(config.get("peft_version")),
            task=str(config.get("task_type") or ""),
        )
    except (TypeError, ValueError, AttributeError, OverflowError, re.error) as error:
        raise DamagedError(f"adapter_config.json: {error}") from error


def _known(value: Any, known: tuple[Any, ...] | None) -> bool:
    return known is None or any(value == one and type(value) is type(one) for one in known)


def _positive(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"a rank is {value!r}")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise ValueError(f"a factor is {value!r}")
    return float(value)


def _patterns(value: Any, read: Callable[[Any], float]) -> Patterns:
    entries = (value or {}).items()
    return Patterns(tuple((re.compile(rf"(.*\.)?({key})$"), str(key), read(one)) for key, one in entries))


def _tokens(value: Any) -> dict[str, tuple[int, ...]]:
    """A list means the input embedding."""
    stated = value if isinstance(value, dict) else {"": value} if value else {}
    found = {str(name): tuple(rows) for name, rows in stated.items()}
    if not all(type(row) is int and row >= 0 for rows in found.values() for row in rows):
        raise ValueError("trainable_token_indices holds something that is no row number")
    return found


def _replication(value: Any) -> tuple[int, ...] | None:
    """[[first, after the last], …] as the layers themselves."""
    if not value:
        return None
    ranges = [range(first, last) for first, last in value]
    if sum(map(len, ranges)) > 10_000 or not (layers := tuple(layer for found in ranges for layer in found)) or min(layers) < 0:
        raise ValueError(f"layer_replication is {value!r}")
    return layers


def _version(value: Any) -> tuple[int, ...] | None:
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", str(value or ""))
    return tuple(map(int, numbers.groups())) if numbers else None
