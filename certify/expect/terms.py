"""What an adapter_config.json says about a merge, field by field. What is not understood is named, never guessed.

Source of the semantics: peft 0.21.2, tuners/lora/config.py and utils/other.py:get_pattern_key.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from certify.errors import DamagedError, NotInterpretedError

WITHOUT_EFFECT: Final = {
    "lora_dropout", "fan_in_fan_out", "inference_mode", "runtime_config", "eva_config", "megatron_config", "megatron_core", "auto_mapping",
    "qalora_group_size", "base_model_name_or_path", "revision", "peft_version", "task_type",
}  # fmt: skip
INTERPRETED: Final = {
    "peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "modules_to_save",
    "layers_to_transform", "layers_pattern", "init_lora_weights", "bias",
}  # fmt: skip
PLAIN_INITS: Final = (True, False, "gaussian", "eva", "orthogonal")  # those that leave the base as it is


@dataclass(frozen=True)
class Terms:
    """The fields that decide a plain LoRA merge, with PEFT's defaults for those that are absent."""

    r: int
    alpha: float
    rslora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...]
    some_layers_only: bool
    modules_to_save: tuple[str, ...]

    def rank(self, path: str) -> int:
        return int(_matched(self.rank_pattern, path, self.r))

    def scaling(self, path: str) -> float:
        """The factor of B·A for the module at `path`: α/r, or α/√r with rsLoRA. Raises NotInterpretedError where patterns disagree."""
        rank, alpha = self.rank(path), _matched(self.alpha_pattern, path, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def targets(self, paths: Iterable[str]) -> bool:
        """True if any of a module's paths is one that the adapter was told to train."""
        paths = tuple(paths)
        return any(_names(self.target_modules, path) for path in paths) and not any(_names(self.exclude_modules, path) for path in paths)

    def saves(self, path: str) -> bool:
        """True if the module at `path`, or one around it, was trained and saved whole: PEFT asks whether its path ends so."""
        parts = path.split(".")
        around = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        return any(module.endswith(name) for module in around for name in self.modules_to_save)


def uninterpreted(config: dict[str, Any]) -> list[str]:
    """The fields that say something which this version cannot judge, each as `name = value`."""
    found = []
    for name, value in sorted(config.items()):
        if name in WITHOUT_EFFECT or value in (None, False) or value in ({}, []):
            continue
        known = name in INTERPRETED
        plain = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": PLAIN_INITS}.get(name, (value,))
        if not known or value not in plain:
            found.append(f"{name} = {value!r}")
    if "peft_type" not in config:
        found.append("peft_type is absent")
    return found


def read_terms(config: dict[str, Any]) -> Terms:
    """The terms of a plain LoRA. Raises DamagedError if a field has a value of the wrong kind."""
    try:
        return Terms(
            r=_positive(config.get("r", 8)),
            alpha=float(config.get("lora_alpha", 8)),
            rslora=config.get("use_rslora") is True,
            rank_pattern={_regex(key): _positive(value) for key, value in (config.get("rank_pattern") or {}).items()},
            alpha_pattern={_regex(key): float(value) for key, value in (config.get("alpha_pattern") or {}).items()},
            target_modules=_modules(config.get("target_modules")),
            exclude_modules=_modules(config.get("exclude_modules")),
            some_layers_only=config.get("layers_to_transform") is not None,
            modules_to_save=tuple(str(name) for name in config.get("modules_to_save") or ()),
        )
    except (TypeError, ValueError, AttributeError, OverflowError, re.error) as error:
        raise DamagedError(f"adapter_config.json: {error}") from error


def _positive(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"a rank is {value!r}")
    return value


def _regex(pattern: str) -> str:
    re.compile(rf"(.*\.)?({pattern})$")
    return pattern


def _modules(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return _regex(value)
    return tuple(str(name) for name in value or ())


def _names(modules: str | tuple[str, ...], path: str) -> bool:
    """PEFT's rule: a string is a regular expression for the whole path; in a list each name is a path or the end of one."""
    if isinstance(modules, str):
        return bool(modules) and re.fullmatch(modules, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in modules)


def _matched(pattern: dict[str, Any], path: str, default: float) -> float:
    """The value of the entries that match `path`, or the default.

    PEFT takes the first match, but saves the dictionary sorted: if two matches disagree, training and reload differ and
    nobody can tell from the file which one was meant.
    """
    values = {key: value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", path)}
    if len(set(values.values())) > 1:
        raise NotInterpretedError(f"the patterns {', '.join(map(repr, values))} disagree about {path}")
    return float(next(iter(values.values()), default))
