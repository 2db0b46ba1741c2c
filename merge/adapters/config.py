"""`adapter_config.json` as PEFT writes it → `Settings`; what would be misinterpreted is refused, field by field."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from merge.adapters import values
from merge.adapters.refused import advice, refuse_other_methods
from merge.errors import NOTHING_WRITTEN, AdapterError, listing

DEFAULT_RANK = 8  # PEFT's LoraConfig
Number = TypeVar("Number", int, float)

CONSUMED = {  # read below, or by the variants
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "init_lora_weights", "task_type"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "target_parameters"),
    *("use_dora", "lora_bias", "trainable_token_indices", "ensure_weight_tying", "layer_replication", "peft_version", "lora_B_layout"),
}
WITHOUT_EFFECT = {  # on a merge: provenance, training-time switches, details of inits, and flags that the module class decides
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "runtime_config"),
    *("lora_dropout", "fan_in_fan_out", "megatron_config", "megatron_core", "eva_config", "lora_ga_config", "corda_config"),
    *("loftq_config", "qalora_group_size"),
}
HARMLESS_INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # the base keeps its weights
ALL_LINEAR = "all-linear"  # what PEFT resolves: every linear module but the output head
BIASES = (None, "none", "all", "lora_only")
B_LAYOUTS = (None, "rank_major", "grouped_by_expert")


@dataclass(frozen=True, slots=True)
class Settings:
    """The part of a LoRA configuration that decides what is merged.

    parameters   `target_parameters`: parameters that were adapted without their module
    tokens       `trainable_token_indices`: rows that were trained, of every embedding ("") or by module name
    grouped      lora_B of stacked experts holds expert after expert (Unsloth), not rank after rank (PEFT)
    replication  layers of the trained stack, by their number in the base; None: the base's own
    version      of the PEFT that saved it, None before 0.18
    fan_in_fan_out  the adapted layers store (in, out): asked for only where no module class says it
    """

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...] | str
    exclude_modules: tuple[str, ...] | str
    layers: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    modules_to_save: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dora: bool = False
    bias: str = "none"
    lora_bias: bool = False
    tying: bool = False
    grouped: bool = False
    replication: tuple[int, ...] | None = None
    task: str | None = None
    version: tuple[int, ...] | None = None
    fan_in_fan_out: bool | None = None

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
            and not any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in self.modules_to_save)
            and (self.layers is None or self._is_spelled_out(path) or self._layer(path) in self.layers)
        )

    def may_train_bias(self, name: str) -> bool:
        """True where PEFT may have trained a parameter as a bias: until 0.20 "all" meant those with the word anywhere in their names, T5's
        relative_attention_bias.weight too."""
        return "bias" in name if self.bias == "all" else self.bias != "none" and name.endswith("bias")

    def targets_parameter(self, name: str) -> bool:
        """True where PEFT would have put LoRA on this parameter, as PEFT matches it: whole dotted tails."""
        return bool(self.parameters) and _named(self.parameters, name)

    def _is_spelled_out(self, path: str) -> bool:
        """Where a pattern or a whole path names the module, PEFT asks for no layer."""
        return isinstance(self.target_modules, str) or path in self.target_modules

    def _layer(self, path: str) -> int | None:
        patterns = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in self.layers_pattern] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((match for pattern in patterns if (match := re.match(pattern, path))), None)  # the first number, as PEFT does
        return int(found[1]) if found else None


def read(config: Mapping[str, Any]) -> Settings:
    """The settings of one adapter; raises AdapterError naming every field that this version would misinterpret."""
    refuse_other_methods(config)
    problems = [f"{field} = {value!r}" for field, value in sorted(config.items()) if not _understood(field, value)]
    if problems:
        raise AdapterError(
            f"adapter_config.json asks for what this version does not merge:\n{listing(problems)}\n{advice(config)} {NOTHING_WRITTEN}"
        )
    try:
        return _settings(config)
    except (TypeError, ValueError, ArithmeticError, AttributeError, re.error) as error:
        raise AdapterError(f"adapter_config.json cannot be read: {error}. {NOTHING_WRITTEN}") from error


def _settings(config: Mapping[str, Any]) -> Settings:
    return Settings(
        rank=values.rank(config.get("r", DEFAULT_RANK)),
        alpha=values.number(config.get("lora_alpha", DEFAULT_RANK)),
        rslora=values.switch(config.get("use_rslora")),
        rank_pattern={values.regex(key): values.rank(value) for key, value in (config.get("rank_pattern") or {}).items()},
        alpha_pattern={values.regex(key): values.number(value) for key, value in (config.get("alpha_pattern") or {}).items()},
        target_modules=_targets(config),
        exclude_modules=values.names(config.get("exclude_modules")),
        layers=values.layers(config.get("layers_to_transform")),
        layers_pattern=values.layers_pattern(config.get("layers_pattern")),
        modules_to_save=tuple(values.regex(name) for name in values.only_names(config.get("modules_to_save"), "modules_to_save")),
        parameters=values.only_names(config.get("target_parameters"), "target_parameters"),
        tokens=values.tokens(config.get("trainable_token_indices")),
        dora=values.switch(config.get("use_dora")),
        bias=config.get("bias") or "none",
        lora_bias=values.switch(config.get("lora_bias")),
        tying=values.switch(config.get("ensure_weight_tying")),
        grouped=config.get("lora_B_layout") == "grouped_by_expert",
        replication=values.replication(config.get("layer_replication")),
        task=values.word(config.get("task_type")),
        version=values.version(config.get("peft_version")),
        fan_in_fan_out=config.get("fan_in_fan_out"),
    )


def _targets(config: Mapping[str, Any]) -> tuple[str, ...] | str:
    """`target_modules`; PEFT spells "all-linear" in any case."""
    found = values.names(config.get("target_modules"))
    return ALL_LINEAR if isinstance(found, str) and found.lower() == ALL_LINEAR else found


def _understood(field: str, value: object) -> bool:
    known = {"bias": BIASES, "lora_B_layout": B_LAYOUTS, "init_lora_weights": HARMLESS_INITS}.get(field)
    if known is not None:
        return any(value is harmless or value == harmless for harmless in known)
    return field in CONSUMED or field in WITHOUT_EFFECT or not value


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
