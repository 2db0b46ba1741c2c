"""`adapter_config.json` as PEFT writes it → `Settings`; what would be misinterpreted is refused, field by field."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from merge.errors import NOTHING_WRITTEN, AdapterError, listing

DEFAULT_RANK = 8  # PEFT's LoraConfig
Number = TypeVar("Number", int, float)

CONSUMED = {  # read below, or by the variants
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "modules_to_save"),
}
WITHOUT_EFFECT = {  # on a merge: provenance, training-time switches, details of inits, and flags that the module class decides
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "task_type", "inference_mode", "runtime_config"),
    *("lora_dropout", "fan_in_fan_out", "megatron_config", "megatron_core", "eva_config", "lora_ga_config", "corda_config"),
    *("loftq_config", "qalora_group_size", "ensure_weight_tying"),
}
HARMLESS_INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # the base keeps its weights


@dataclass(frozen=True, slots=True)
class Settings:
    """The part of a LoRA configuration that decides what is merged."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...] | str
    exclude_modules: tuple[str, ...] | str
    layers: tuple[int, ...] | None
    modules_to_save: tuple[str, ...]

    def scaling(self, path: str, rank: int) -> float:
        """The factor of B · A for one module: alpha/rank, or alpha/√rank with rsLoRA.

        path  the module as the adapter names it, without "base_model.model."      rank  rows of its A

        Raises AdapterError if the rank is not the configured one, or if two patterns disagree about the module.
        """
        expected = _pattern_value(self.rank_pattern, path, self.rank, "rank_pattern")
        if expected != rank:
            raise AdapterError(f"{path}: lora_A has rank {rank}, the configuration says {expected}")
        alpha = _pattern_value(self.alpha_pattern, path, self.alpha, "alpha_pattern")
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def saves(self, path: str) -> bool:
        """True where PEFT would have trained this module, or one around it, whole: it asks whether a path ends so, dot or not."""
        parts = path.split(".")
        around = [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        return any(module.endswith(name) for module in around for name in self.modules_to_save)

    def targets(self, path: str) -> bool:
        """True where PEFT would have put LoRA on this module."""
        return (
            _named(self.target_modules, path)
            and not _named(self.exclude_modules, path)
            and not _named(self.modules_to_save, path)
            and (self.layers is None or _layer(path) in self.layers)
        )


def read(config: Mapping[str, Any]) -> Settings:
    """The settings of one adapter; raises AdapterError naming every field that this version would misinterpret."""
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"adapter_config.json: peft_type is {config.get('peft_type')!r}; this version merges LORA. {NOTHING_WRITTEN}")
    problems = [f"{field} = {value!r}" for field, value in sorted(config.items()) if not _understood(field, value)]
    if problems:
        raise AdapterError(
            f"adapter_config.json asks for what this version does not merge:\n{listing(problems)}\n"
            f"Merge such an adapter with the tool that trained it, or retrain without the feature. {NOTHING_WRITTEN}"
        )
    try:
        return _settings(config)
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise AdapterError(f"adapter_config.json cannot be read: {error}. {NOTHING_WRITTEN}") from error


def _settings(config: Mapping[str, Any]) -> Settings:
    return Settings(
        rank=_rank(config.get("r", DEFAULT_RANK)),
        alpha=_number(config.get("lora_alpha", DEFAULT_RANK)),
        rslora=_switch(config.get("use_rslora")),
        rank_pattern={_regex(key): _rank(value) for key, value in (config.get("rank_pattern") or {}).items()},
        alpha_pattern={_regex(key): _number(value) for key, value in (config.get("alpha_pattern") or {}).items()},
        target_modules=_names(config.get("target_modules")),
        exclude_modules=_names(config.get("exclude_modules")),
        layers=_layers(config),
        modules_to_save=tuple(config.get("modules_to_save") or ()),
    )


def _understood(field: str, value: object) -> bool:
    if field == "bias":
        return value == "none"
    if field == "init_lora_weights":
        return any(value is harmless or value == harmless for harmless in HARMLESS_INITS)
    return field in CONSUMED or field in WITHOUT_EFFECT or not value


def _number(value: object) -> float:
    """A finite number: Python's JSON also reads NaN, which some kernels take for 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"a finite number was expected, found {value!r}")
    return float(value)


def _rank(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"a rank of at least 1 was expected, found {value!r}")
    return value


def _switch(value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"true or false was expected, found {value!r}")
    return bool(value)


def _regex(pattern: str) -> str:
    re.compile(pattern)
    return pattern


def _names(value: object) -> tuple[str, ...] | str:
    if value is None or isinstance(value, str):
        return _regex(value) if value else ()
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    raise ValueError(f"a name, a pattern or a list of names was expected, found {value!r}")


def _layers(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    value = config.get("layers_to_transform")
    return None if value is None else tuple(value) if isinstance(value, list) else (int(value),)


def _pattern_value(pattern: Mapping[str, Number], path: str, default: Number, field: str) -> Number:
    """PEFT's rule: the first key that matches a whole dotted tail of the path. The saved file has lost the order of the
    keys (it is sorted), so two keys that disagree about a module leave open what was trained."""
    hits = [key for key in pattern if re.match(rf"(.*\.)?({key})$", path)]
    if len({pattern[key] for key in hits}) > 1:
        found = ", ".join(f"{key!r}: {pattern[key]}" for key in hits)
        raise AdapterError(f"{field} has several keys for {path} that disagree ({found}); which one was trained cannot be known")
    return pattern[hits[0]] if hits else default


def _named(names: tuple[str, ...] | str, path: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in names)


def _layer(path: str) -> int | None:
    found = re.match(r".*?\.[^.]*\.(\d+)\.", path)  # PEFT's own pattern when layers_pattern is not set
    return int(found[1]) if found else None
