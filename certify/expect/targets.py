"""Which modules a LoRA configuration names: peft 0.21.2, tuners/tuners_utils.py:check_target_module_exists, rule by rule."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
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
    saved = tuple(str(name) for name in config.get("modules_to_save") or ())
    layers, stacks = config.get("layers_to_transform"), config.get("layers_pattern") or ()
    if layers is not None and not isinstance(layers, int):
        layers = tuple(layers) or None
    return Targets(
        chosen=_chosen(config.get("target_modules")),
        excluded=_chosen(config.get("exclude_modules")),
        saved=saved,
        layers=None if layers is None else frozenset((layers,) if isinstance(layers, int) else map(int, layers)),
        stacks=tuple(
            re.compile(rf"(?:^|.*?\.){stack}\.(?P<idx>\d+)\.") for stack in ((stacks,) if isinstance(stacks, str) else stacks)
        ) or (ANY_STACK,),
        _saved=tuple(re.compile(rf"(^|.*\.){name}($|\..*)") for name in saved),
    )  # fmt: skip


def named(names: Iterable[str], path: str) -> bool:
    """PEFT's rule for lists: each name is a path or the end of one."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def _chosen(value: Any) -> Chosen:
    return re.compile(value) if isinstance(value, str) else tuple(str(name) for name in value or ())


def _names(modules: Chosen, path: str) -> bool:
    if isinstance(modules, re.Pattern):
        return bool(modules.pattern) and modules.fullmatch(path) is not None
    return named(modules, path)
