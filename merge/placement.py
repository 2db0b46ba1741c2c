"""Which tensor of the base each contribution belongs to; whatever has no place, or a wrong one, is refused. Pure."""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping

from merge import encodings
from merge.adapters import Adapter
from merge.adapters.contract import Addition, Contribution, Replacement
from merge.catalog import Tensor
from merge.errors import NOTHING_WRITTEN, AdapterError, listing
from merge.names import Names
from merge.nametable import NameTable, Weight
from merge.operation import Part, Read

SHOWN = 12  # strangers for which the nearest name is looked up: a search over every name of the base
Placed = tuple[Part, ...] | Read  # what is added to a tensor, or what takes its place


def place(adapters: Iterable[Adapter], table: NameTable, base: Mapping[str, Tensor]) -> Mapping[str, Placed]:
    """Base tensor → what happens to it; tensors that nothing happens to are absent.

    Raises AdapterError, all faults of a kind in one message.
    """
    adapters = tuple(adapters)
    names = Names(table)
    for adapter in adapters:
        _refuse_strangers(adapter, names, base)
        _refuse_truncated(adapter, names)
    parts: dict[str, list[Part]] = defaultdict(list)
    replaced: dict[str, Read] = {}
    problems: list[str] = []
    for adapter in adapters:
        for contribution in adapter.contributions:
            weight = names.find(contribution.weight)
            assert weight is not None  # strangers were refused above
            problem = _misfit(contribution, weight, base[weight.key], names)
            if not problem and (weight.key in replaced or _claimed(parts[weight.key], contribution, adapter.index)):
                problem = f"{base[weight.key]}: two contributions of which one at most can be merged claim this tensor"
            if problem:
                problems.append(problem)
            elif isinstance(contribution, Addition):
                parts[weight.key].append(_part(adapter, contribution, weight))
            else:
                replaced[weight.key] = Read("adapter", adapter.index, contribution.value)
    if problems:
        raise AdapterError(f"{len(problems)} contributions do not fit the base\n{listing(problems)}\n{NOTHING_WRITTEN}")
    return {key: tuple(found) for key, found in parts.items() if found} | replaced


def _claimed(parts: list[Part], contribution: Contribution, adapter: int) -> bool:
    """True where a weight already has what this contribution cannot be combined with."""
    return bool(parts) and (isinstance(contribution, Replacement) or any(part.a.index == adapter for part in parts))


def _part(adapter: Adapter, addition: Addition, weight: Weight) -> Part:
    a, b = (Read("adapter", adapter.index, tensor) for tensor in (addition.a, addition.b))
    return Part(a, b, addition.scaling * adapter.weight, transposed=weight.layout == "conv1d")


def _misfit(contribution: Contribution, weight: Weight, tensor: Tensor, names: Names) -> str:
    """Why a contribution cannot be merged into the tensor it names; empty if it can."""
    if names.is_tied(contribution.weight):
        return f"{tensor}: shares its storage with another weight (tied embeddings); not merged by this version"
    foreign = [str(given) for given in contribution.tensors if encodings.of(given) is None]
    if foreign:
        return f"{foreign[0]}: adapter tensors of this dtype are not merged by this version"
    if encodings.of(tensor) is None:
        return f"{tensor}: stored as {tensor.dtype}, which this version carries but does not merge into"
    if names.is_ambiguous(weight):
        return f"{tensor}: another tensor of the base fills the same parameter {weight.parameter}; which one is used cannot be known"
    if isinstance(contribution, Replacement):
        same = contribution.value.shape == tensor.shape
        return "" if same else f"{tensor}: the adapter replaces it by a tensor of shape {contribution.value.shape}"
    if weight.layout == "other":
        return f"{tensor}: not a linear layer; not merged by this version"
    (_, columns), rows = contribution.a.shape, contribution.b.shape[0]
    expected = (columns, rows) if weight.layout == "conv1d" else (rows, columns)
    if tensor.shape != expected:
        return f"{tensor}: lora_A {contribution.a.shape} and lora_B {contribution.b.shape} make a delta of shape {expected}"
    return ""


def _refuse_strangers(adapter: Adapter, names: Names, base: Mapping[str, Tensor]) -> None:
    """Raises AdapterError naming every adapter tensor whose module the base does not have, with the nearest name that it has."""
    strangers = [contribution for contribution in adapter.contributions if names.find(contribution.weight) is None]
    if strangers:
        count = sum(len(contribution.tensors) for contribution in strangers)
        lines = [f"{tensor}\n    {_hint(c.weight, names, base)}" for c in strangers[:SHOWN] for tensor in c.tensors]
        raise AdapterError(f"{count} adapter tensors have no place in the base checkpoint\n{listing(lines)}\n{NOTHING_WRITTEN}")


def _hint(weight: str, names: Names, base: Mapping[str, Tensor]) -> str:
    """What a stranger may have been meant for."""
    if weight in names.table.unmatched:
        return f"the base has {weight}, but no module of {names.table.architecture} owns it: it is carried, never merged into"
    nearest = difflib.get_close_matches(weight, base, n=1, cutoff=0.0)
    return f"nearest base weight: {base[nearest[0]]}"


def _refuse_truncated(adapter: Adapter, names: Names) -> None:
    """Raises AdapterError if modules that the adapter's own configuration names have no tensors in its file.

    Single experts are demanded only where the file speaks of single experts: adapters trained on fused ones name them otherwise.
    """
    given = {weight.key for c in adapter.contributions if (weight := names.find(c.weight)) is not None}
    single_experts = any(weight.fused and weight.key in given for weight in names.table.weights)
    demanded = [weight for weight in names.table.weights if _demanded(weight, adapter, names, single_experts=single_experts)]
    absent = [weight.key for weight in demanded if weight.key not in given]
    if absent:
        raise AdapterError(
            f"{len(absent)} of {len(demanded)} weights that target_modules or modules_to_save names have no tensors in the adapter: "
            f"it is truncated\n{listing(absent)}\n{NOTHING_WRITTEN}"
        )


def _demanded(weight: Weight, adapter: Adapter, names: Names, *, single_experts: bool) -> bool:
    """True where the adapter's configuration promises tensors for a weight."""
    settings, module = adapter.settings, weight.parameter.rpartition(".")[0]
    if weight.fused:
        return single_experts and weight.layout == "linear" and settings.targets(weight.renamed.removesuffix(".weight"))
    return settings.saves(module) or (module in names.table.modules and weight.parameter.endswith(".weight") and settings.targets(module))
