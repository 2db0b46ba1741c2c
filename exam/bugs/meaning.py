"""Bugs in what an adapter's configuration and tensors mean: merge/adapters/."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace as changed
from typing import Any

import pytest

from exam.bugs.registry import bug
from merge import adapters
from merge.adapters import config, contract, lora, replace, values
from merge.adapters.config import Settings
from merge.placement import demand


def scaling(patch: pytest.MonkeyPatch, wrong: Callable[[Settings, str, int], float]) -> None:
    patch.setattr(Settings, "scaling", wrong)


def alpha_of(settings: Settings, path: str) -> float:
    return config._pattern_value(settings.alpha_pattern, path, settings.alpha, "alpha_pattern")


@bug("adapters/config", "llama rsLoRA", "rsLoRA's α/√r is taken for α/r")
def rslora_ignored(patch: pytest.MonkeyPatch) -> None:
    scaling(patch, lambda settings, path, rank: alpha_of(settings, path) / rank)


@bug("adapters/config", "llama", "every adapter is taken for rsLoRA: α/√r")
def rslora_everywhere(patch: pytest.MonkeyPatch) -> None:
    scaling(patch, lambda settings, path, rank: alpha_of(settings, path) / math.sqrt(rank))


@bug("adapters/config", "llama", "α is forgotten: 1/r")
def alpha_forgotten(patch: pytest.MonkeyPatch) -> None:
    scaling(patch, lambda _, __, rank: 1 / rank)


@bug("adapters/config", "llama", "r is forgotten: α")
def rank_forgotten(patch: pytest.MonkeyPatch) -> None:
    scaling(patch, lambda settings, path, _: alpha_of(settings, path))


@bug("adapters/config", "llama", "α is divided by the configured rank where rank_pattern says another")
def rank_pattern_ignored(patch: pytest.MonkeyPatch) -> None:
    scaling(patch, lambda settings, path, _: alpha_of(settings, path) / settings.rank)


@bug("adapters/config", "llama", "alpha_pattern is ignored")
def alpha_pattern_ignored(patch: pytest.MonkeyPatch) -> None:
    scaling(patch, lambda settings, _, rank: settings.alpha / rank)


@bug("adapters/config", "llama", "the keys of patterns are compared as names, not as regular expressions")
def patterns_as_plain_names(patch: pytest.MonkeyPatch) -> None:
    def value(pattern: Any, path: str, default: float, _: str) -> float:
        return next((pattern[key] for key in pattern if path.endswith(key)), default)

    patch.setattr(config, "_pattern_value", value)


@bug("adapters/config", "llama", "the value of a pattern's first key is given to every module")
def pattern_matches_everything(patch: pytest.MonkeyPatch) -> None:
    original = config._pattern_value

    def value(pattern: Any, path: str, default: float, field: str) -> float:
        return next(iter(pattern.values()), default) if field == "alpha_pattern" else original(pattern, path, default, field)

    patch.setattr(config, "_pattern_value", value)


@bug("adapters/config", "llama without α", "an absent lora_alpha is taken for 16, PEFT's default is 8")
def default_alpha_of_another_library(patch: pytest.MonkeyPatch) -> None:
    original = config._settings
    patch.setattr(config, "_settings", lambda given: original({"lora_alpha": 16} | dict(given)))


@bug("adapters/config", "llama aLoRA", "fields that are not understood are read over")
def unknown_fields_accepted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(config, "_understood", lambda *_: True)


@bug("placement/demand", "llama truncated", "target_modules demand nothing: a truncated adapter is merged")
def targets_demand_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(demand, "_demanded", lambda *_, **__: False)


@bug("adapters/config", "llama head lost", "modules_to_save demand nothing: a truncated adapter is merged", stopped=True)
def saves_demand_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Settings, "saves", lambda *_: False)


@bug("adapters/config", "llama excluded", "exclude_modules is ignored", stopped=True)
def exclusion_ignored(patch: pytest.MonkeyPatch) -> None:
    original = config._settings
    patch.setattr(config, "_settings", lambda given: changed(original(given), exclude_modules=()))


@bug("adapters/config", "llama layer 1", "layers_to_transform is ignored", stopped=True)
def layers_ignored(patch: pytest.MonkeyPatch) -> None:
    original = config._settings
    patch.setattr(config, "_settings", lambda given: changed(original(given), layers=None))


@bug("adapters/config", "llama LoHa", "another kind of adapter is read as a LoRA")
def other_kinds_accepted(patch: pytest.MonkeyPatch) -> None:
    original = config.read
    patch.setattr(config, "read", lambda given: original(dict(given) | {"peft_type": "LORA"}))


@bug("adapters/config", "llama PiSSA", "initialisations that change the base are accepted")
def inits_that_change_the_base(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(config, "HARMLESS_INITS", (*config.HARMLESS_INITS, "pissa"))


@bug("adapters/values", "llama α NaN", "numbers that are not finite are accepted", stopped=True)
def alpha_not_a_number(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(values, "number", float)


@bug("adapters/config", "llama other r", "the rank of the file is believed against the configuration")
def rank_of_the_file(patch: pytest.MonkeyPatch) -> None:
    scaling(patch, lambda settings, path, rank: alpha_of(settings, path) / rank)


@bug("adapters/values", "llama rsLoRA as text", 'the text "false" is true')
def text_taken_for_true(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(values, "switch", bool)


@bug("adapters/config", "llama patterns at odds", "of patterns that disagree, the last one wins")
def last_pattern_wins(patch: pytest.MonkeyPatch) -> None:
    original = config._pattern_value

    def value(pattern: Any, path: str, default: float, field: str) -> float:
        return original(dict([*pattern.items()][-1:]), path, default, field)

    patch.setattr(config, "_pattern_value", value)


def claims(patch: pytest.MonkeyPatch, module: Any, wrong: Callable[[list[Any]], list[Any]]) -> None:
    """Everything that one variant claims, spoiled."""
    original = module.claim

    def claim(settings: Settings, tensors: Any) -> Iterator[Any]:
        yield from wrong(list(original(settings, tensors)))

    others = tuple(variant for variant in adapters.VARIANTS if variant is not original)
    patch.setattr(adapters, "VARIANTS", (claim, *others))


def exchanged(field: str, *parts: str) -> Callable[[list[Any]], list[Any]]:
    """One field of claims exchanged between those whose weights differ in one part of their names."""

    def wrong(found: list[Any]) -> list[Any]:
        held = {claim.names[0]: getattr(claim, field) for claim in found}
        return [changed(claim, **{field: held.get(twin(claim.names[0], *parts), held[claim.names[0]])}) for claim in found]

    return wrong


def twin(name: str, one: str, other: str) -> str:
    return name.replace(one, other) if one in name else name.replace(other, one)


@bug("adapters/lora", "llama rsLoRA", "A is paired with the B of another layer")
def pairs_of_two_layers(patch: pytest.MonkeyPatch) -> None:
    claims(patch, lora, exchanged("b", "layers.0.", "layers.1."))


@bug("adapters/lora", "llama", "every pair gets the first pair's scaling")
def one_scaling_for_all(patch: pytest.MonkeyPatch) -> None:
    claims(patch, lora, lambda found: [changed(claim, scaling=found[0].scaling) for claim in found])


@bug("adapters/lora", "deepseek", "gate_proj's pair goes to up_proj, and the other way round")
def gate_and_up_exchanged(patch: pytest.MonkeyPatch) -> None:
    claims(
        patch,
        lora,
        lambda found: [changed(claim, names=tuple(twin(name, "gate_proj", "up_proj") for name in claim.names)) for claim in found],
    )


@bug("adapters/lora", "llama", "the last pair is left out", stopped=True)
def last_pair_left_out(patch: pytest.MonkeyPatch) -> None:
    claims(patch, lora, lambda found: found[:-1])


@bug("adapters/lora", "llama half a pair", "an A without its B is read over", stopped=True)
def half_pairs_read_over(patch: pytest.MonkeyPatch) -> None:
    original = lora.claim

    def claim(settings: Settings, tensors: Any) -> Iterator[Any]:
        return original(settings, {name: tensor for name, tensor in tensors.items() if name.replace("lora_A", "lora_B") in tensors})

    patch.setattr(adapters, "VARIANTS", (claim, replace.claim))


@bug("adapters/replace", "llama", "modules saved whole go to another layer")
def saved_modules_of_two_layers(patch: pytest.MonkeyPatch) -> None:
    claims(patch, replace, exchanged("value", "layers.0.", "layers.1."))


@bug("adapters/replace", "gpt2", "a saved module's bias gets its weight")
def saved_bias_gets_the_weight(patch: pytest.MonkeyPatch) -> None:
    claims(patch, replace, exchanged("value", ".weight", ".bias"))


@bug("adapters/replace", "llama", "modules saved whole are not claimed", stopped=True)
def saved_modules_not_claimed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(adapters, "VARIANTS", (lora.claim,))


@bug("adapters/contract", "llama", "names lose their layer: what is for one goes to the other")
def names_of_another_layer(patch: pytest.MonkeyPatch) -> None:
    def strip(name: str) -> str:
        return twin(name.removeprefix(contract.PREFIX), "layers.0.", "layers.1.")

    patch.setattr(contract, "strip", strip)
    patch.setattr(replace, "strip", strip)


@bug("adapters/contract", "llama", "PEFT's prefix is left on the names", stopped=True)
def prefix_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(contract, "strip", lambda name: name)


@bug("adapters/contract", "llama rsLoRA", "tensors are taken in the file's order, their names from the sorted list")
def names_and_tensors_out_of_step(patch: pytest.MonkeyPatch) -> None:
    def with_suffix(tensors: Any, suffix: str) -> Iterator[tuple[str, Any]]:
        found = [(contract.strip(name).removesuffix(suffix), tensor) for name, tensor in tensors.items() if name.endswith(suffix)]
        for path, tensor in found:
            others = [other for _, other in reversed(found) if other.shape == tensor.shape]
            yield path, others[[o for _, o in found if o.shape == tensor.shape].index(tensor)]

    patch.setattr(lora, "with_suffix", with_suffix)


@bug("adapters/__init__", "llama stranger", "tensors that nobody claims are read over")
def strangers_read_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(adapters, "Counter", lambda names: dict.fromkeys((*names, "base_model.model.model.layers.0.self_attn.inv_freq"), 1))


@bug("adapters/__init__", "llama rsLoRA", "an adapter weighs one half unless told otherwise")
def half_the_weight(patch: pytest.MonkeyPatch) -> None:
    original = adapters.Adapter.of.__func__  # type: ignore[attr-defined]
    patch.setattr(adapters.Adapter, "of", classmethod(lambda cls, *given: original(cls, *given[:3], 0.5)))
