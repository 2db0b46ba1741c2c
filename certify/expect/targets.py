"""Which modules a LoRA configuration names: peft 0.21.2, tuners/tuners_utils.py:check_target_module_exists, rule by rule."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

LINEAR: Final = "all-linear"  # every linear module but the output head
ANY_STACK: Final = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")  # the first number in a path is that of its layer

Chosen = re.Pattern[str] | tuple[str, ...]


@dataclass(frozen=True)
class Targets:
    """chosen, excluded: a pattern for whole paths, or names that paths end with. layers: None for all; numbers by `stacks`."""

    chosen: Chosen
    excluded: Chosen
    saved: tuple[str, ...]
    layers: frozenset[int] | None
    stacks: tuple[re.Pattern[str], ...]
    _saved: tuple[re.Pattern[str], ...]

    @property
    def unresolved(self) -> bool:
        """True where "all-linear" stands for modules that only the model knows."""
        return isinstance(self.chosen, re.Pattern) and self.chosen.pattern.lower() == LINEAR

    def resolved(self, modules: tuple[str, ...]) -> "Targets":
        """With the modules that "all-linear" stands for."""
        return replace(self, chosen=modules)

    def hit(self, paths: tuple[str, ...]) -> bool:
        """True if the module that has these paths is trained."""
        if any(_names(self.excluded, path) or any(pattern.match(path) for pattern in self._saved) for path in paths):
            return False
        return any(self._hit(path) for path in paths)

    def _hit(self, path: str) -> bool:
        if not _names(self.chosen, path):
            return False
        if self.layers is None or isinstance(self.chosen, re.Pattern) or path in self.chosen:  # layers count for ends only
            return True
        layer = next((found for stack in self.stacks if (found := stack.match(path))), None)
        return layer is not None and int(layer["idx"]) in self.layers


def read_targets(config: dict[str, Any]) -> Targets:
    """Raises TypeError, ValueError or re.error where a field has no sense."""
    saved = listed(config, "modules_to_save")
    stacks = config.get("layers_pattern") or ()
    return Targets(
        chosen=_chosen(config, "target_modules"),
        excluded=_chosen(config, "exclude_modules"),
        saved=saved,
        layers=_layers(config.get("layers_to_transform")),
        stacks=tuple(
            re.compile(rf"(?:^|.*?\.){stack}\.(?P<idx>\d+)\.") for stack in ((stacks,) if isinstance(stacks, str) else stacks)
        ) or (ANY_STACK,),
        _saved=tuple(re.compile(rf"(^|.*\.){name}($|\..*)") for name in saved),
    )  # fmt: skip


def listed(config: dict[str, Any], field: str) -> tuple[str, ...]:
    """Names. Raises ValueError for a single text, which PEFT takes for a list of its letters."""
    value = config.get(field)
    if value is not None and not (isinstance(value, list) and all(isinstance(name, str) for name in value)):
        raise ValueError(f"{field} is {value!r}, which is no list of names")
    return tuple(value or ())


def named(names: Iterable[str], path: str) -> bool:
    """PEFT's rule for lists: each name is a path or the end of one."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def _chosen(config: dict[str, Any], field: str) -> Chosen:
    value = config.get(field)
    return re.compile(value) if isinstance(value, str) else listed(config, field)


def _layers(value: Any) -> frozenset[int] | None:
    """Numbers: a text is never equal to one, so that PEFT would find no layer."""
    stated = [value] if type(value) is int else value
    if stated in (None, []):
        return None
    if not (isinstance(stated, list) and all(type(layer) is int and layer >= 0 for layer in stated)):
        raise ValueError(f"layers_to_transform is {value!r}, which are no numbers of layers")
    return frozenset(stated)


def _names(modules: Chosen, path: str) -> bool:
    if isinstance(modules, re.Pattern):
        return bool(modules.pattern) and modules.fullmatch(path) is not None
    return named(modules, path)
