"""What an adapter's own configuration promises, held against what its file holds: neither may know of more than the other. Pure."""

from collections.abc import Iterator
from dataclasses import replace

from merge.adapters import Adapter
from merge.adapters.config import ALL_LINEAR
from merge.adapters.contract import Addition, Stacked
from merge.errors import NOTHING_WRITTEN, AdapterError, listing
from merge.names import Names
from merge.nametable import Weight

OUT_PROJECTION = ".out_proj"  # of an attention module that is targeted as a whole
CLASSIFIERS = ("score", "classifier")  # peft 0.21.2, SEQ_CLS_HEAD_NAMES: heads that have no name of their own in transformers


def resolved(adapter: Adapter, names: Names) -> Adapter:
    """The adapter with the modules that "all-linear" stands for. PEFT saves them; other writers leave the word.

    Raises AdapterError where nobody knows the base's modules, or where the configuration names none and PEFT would choose.
    """
    settings = adapter.settings
    pairs = [contribution for contribution in adapter.contributions if isinstance(contribution, Addition)]
    if not settings.target_modules and not settings.parameters and pairs:
        raise AdapterError(
            "target_modules names no module: PEFT would choose them by its own list of architectures, "
            f"so that whether the file is whole cannot be known. Write the names of the trained modules there. {NOTHING_WRITTEN}"
        )
    if settings.target_modules != ALL_LINEAR:
        return adapter
    if not names.table.known:
        raise AdapterError(f'target_modules = "{ALL_LINEAR}": the modules of {names.table.architecture} are not known. {NOTHING_WRITTEN}')
    linear = names.table.linear
    head = (names.table.head or "").removesuffix(".weight")
    if not head and settings.task == "SEQ_CLS":
        head = next((name for name in CLASSIFIERS if name in linear), "")
    return replace(adapter, settings=replace(settings, target_modules=tuple(path for path in linear if path != head)))


def refuse_unnamed(adapter: Adapter, names: Names) -> None:
    """Raises AdapterError for every pair that the configuration does not name: PEFT would leave it out without a word."""
    unnamed = [str(c.a) for c in adapter.contributions if isinstance(c, Addition) and not _is_named(c, adapter, names)]
    if unnamed:
        raise AdapterError(
            f"{len(unnamed)} LoRA pairs belong to modules that no field of adapter_config.json names, so that PEFT would not apply them\n"
            f"{listing(unnamed)}\n{NOTHING_WRITTEN}"
        )


def _is_named(addition: Addition, adapter: Adapter, names: Names) -> bool:
    if any(adapter.settings.targets(path) for path in _paths(addition, names)):
        return True
    spelled = names.parameter(addition.names) if adapter.settings.tying else None  # PEFT names one of those that it ties
    return spelled is not None and any(adapter.settings.targets(name.removesuffix(".weight")) for name in names.sharing(spelled[1]))


def _paths(addition: Addition, names: Names) -> Iterator[str]:
    """Every module path that may have been matched: as the adapter's tree spells it, as today's and the checkpoint's do."""
    own = addition.names[0].removesuffix(".weight")
    yield own
    spelled = names.parameter(addition.names)
    weight = names.find(spelled[0]) if spelled else None
    if weight:
        found = {weight.key, weight.renamed} | (set() if weight.fused else {weight.parameter})
        yield from (name.removesuffix(".weight").removesuffix(".in_proj_weight") for name in found)
    if spelled:
        yield spelled[1].removesuffix(".weight")
    if own.endswith(OUT_PROJECTION):
        yield own.removesuffix(OUT_PROJECTION)


def refuse_truncated(adapter: Adapter, names: Names) -> None:
    """Raises AdapterError if weights that the adapter's configuration names have no tensors in its file.

    Single experts are demanded only where the file speaks of single experts: adapters trained on fused ones name them otherwise.
    """
    given, stacks = _given(adapter, names)
    single_experts = any(weight.fused and weight.key in given for weight in names.table.weights)
    demanded = [weight for weight in names.table.weights if _demanded(weight, adapter, names, single_experts=single_experts)]
    absent = [weight.key for weight in demanded if weight.key not in given]
    parameters = [
        f"{path}.{leaf}"
        for path, owner in names.table.owners.items()
        for leaf in owner.parameters
        if adapter.settings.targets_parameter(f"{path}.{leaf}")
    ]
    absent += [name for name in parameters if name not in stacks]
    if absent:
        raise AdapterError(
            f"{len(absent)} of {len(demanded) + len(parameters)} weights that target_modules, target_parameters, modules_to_save or bias "
            f"names have no tensors in the adapter: it is truncated\n{listing(absent)}\n{NOTHING_WRITTEN}"
        )


def _given(adapter: Adapter, names: Names) -> tuple[set[str], set[str]]:
    """(disk keys that the file speaks of, parameters whose stacks it adapts)."""
    keys, counts = set(), dict[tuple[str, ...], int]()
    for contribution in adapter.contributions:
        if isinstance(contribution, Stacked):
            counts[contribution.names] = counts.get(contribution.names, 0) + 1
        elif spelled := names.parameter(contribution.names):
            weight = names.find(spelled[0])
            keys.add(weight.key if weight else spelled[1])
    stacks = set()
    for spelled_names, count in counts.items():
        parameters = [names.table.aliases[name].parameter for name in spelled_names]
        existing = [name for name in parameters if name in names.fillers]
        if count == len(existing):
            stacks |= set(existing)
    return keys, stacks


def _demanded(weight: Weight, adapter: Adapter, names: Names, *, single_experts: bool) -> bool:
    """True where the adapter's configuration promises tensors for a weight."""
    settings, (module, _, leaf) = adapter.settings, weight.parameter.rpartition(".")
    if weight.fused:
        return single_experts and weight.layout == "linear" and settings.targets(weight.renamed.removesuffix(".weight"))
    if not names.table.known:
        return leaf == "weight" and settings.targets(module)
    targeted = module in names.table.modules and settings.targets(module)
    if leaf == "bias" and (settings.bias == "all" or (settings.bias == "lora_only" and targeted)):
        return True
    return settings.saves(module) or (leaf == "weight" and targeted)
