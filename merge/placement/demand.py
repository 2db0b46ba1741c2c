"""What an adapter's own configuration promises, held against what its file holds: a truncated file is refused. Pure."""

from merge.adapters import Adapter
from merge.adapters.contract import Stacked
from merge.errors import NOTHING_WRITTEN, AdapterError, listing
from merge.names import Names
from merge.nametable import Weight


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
