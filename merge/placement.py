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
    if isinstance(contribution, Replacement):
        same = contribution.value.shape == tensor.shape
        return "" if same else f"{tensor}: the adapter replaces it by a tensor of shape {contribution.value.shape}"
    if encodings.of(tensor) is None:
        return f"{tensor}: stored as {tensor.dtype}, which this version carries but does not merge into"
    if weight.layout == "other":
        return f"{tensor}: not a linear layer; not merged by this version"
    (_, columns), rows = contribution.a.shape, contribution.b.shape[0]
    expected = (columns, rows) if weight.layout == "conv1d" else (rows, columns)
    if tensor.shape != expected:
        return f"{tensor}: lora_A {contribution.a.shape} and lora_B {contribution.b.shape} make a delta of shape {expected}"
    return ""


def _refuse_strangers(adapter: Adapter, names: Names, base: Mapping[str, Tensor]) -> None:
    """Raises AdapterError naming every adapter tensor whose module the base does not have, with the nearest name that it has."""
    strangers = []
    for contribution in adapter.contributions:
        if names.find(contribution.weight) is None:
            nearest = difflib.get_close_matches(contribution.weight, base, n=1, cutoff=0.0)
            strangers += [f"{tensor}\n    nearest base weight: {base[nearest[0]]}" for tensor in contribution.tensors]
    if strangers:
        raise AdapterError(
            f"{len(strangers)} adapter tensors have no place in the base checkpoint\n{listing(strangers)}\n{NOTHING_WRITTEN}"
        )


def _refuse_truncated(adapter: Adapter, names: Names) -> None:
    """Raises AdapterError if modules that the adapter's own configuration targets have no tensors in its file."""
    given = {names.table.aliases[c.weight][0] for c in adapter.contributions if isinstance(c, Addition)}
    targeted = {path for path in names.table.modules if adapter.settings.targets(path)}
    absent = sorted(path for path in targeted if f"{path}.weight" not in given)
    if absent:
        raise AdapterError(
            f"{len(absent)} of {len(targeted)} modules that target_modules names have no tensors in the adapter: it is truncated\n"
            f"{listing(absent)}\n{NOTHING_WRITTEN}"
        )
