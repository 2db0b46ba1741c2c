"""Which tensor of the base each contribution belongs to; whatever has no place, or a wrong one, is refused. Pure."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from merge.adapters import Adapter
from merge.adapters.contract import Addend, Addition, Again, Contribution, Replacement, Snapshot, Stacked, TokenRows
from merge.catalog import Tensor
from merge.errors import NOTHING_WRITTEN, AdapterError, listing
from merge.names import Names
from merge.nametable import NameTable
from merge.operation import Read
from merge.placement import fit, ties
from merge.placement.demand import refuse_truncated, refuse_unnamed, resolved
from merge.placement.site import Placed, Site
from merge.placement.ties import Equal

__all__ = ["Equal", "Placed", "Placement", "place"]

SHOWN = 12  # strangers for which the nearest name is looked up: a search over every name of the base


@dataclass(frozen=True, slots=True)
class Placement:
    """What the adapters change.

    placed  output tensor → what happens to it; tensors that nothing happens to are absent, those that the base has not are among them
    edits   fields of the configuration that must follow      equal  tensors of the adapters that must agree before anything is written
    zero   tensors of the adapters that must be zero, since what they adapt has no effect
    """

    placed: Mapping[str, Placed]
    edits: Mapping[str, Any]
    equal: tuple[Equal, ...]
    zero: tuple[Read, ...]


def place(adapters: Iterable[Adapter], table: NameTable, base: Mapping[str, Tensor], quantised: frozenset[str] = frozenset()) -> Placement:
    """Raises AdapterError, all faults of a kind in one message. quantised  weights of the base that have a scale, so that they are read"""
    names = Names(table)
    adapters = tuple(resolved(adapter, names) for adapter in adapters)
    for adapter in adapters:
        _refuse_strangers(adapter, names, base)
        refuse_unnamed(adapter, names)
        refuse_truncated(adapter, names)
    sites: dict[str, Site] = {}
    problems: list[str] = []
    for adapter in adapters:
        for contribution in sorted(adapter.contributions, key=lambda c: not isinstance(c, Snapshot)):  # they decide the shapes
            if _is_bypassed(contribution, names):
                continue
            try:
                _gather(adapter, contribution, names, base, sites, quantised)
            except AdapterError as error:
                problems.append(str(error))
    problems += [problem for key, site in sites.items() if (problem := site.problem(str(site.tensor or key)))]
    if problems:
        raise AdapterError(f"{len(problems)} contributions do not fit the base\n{listing(problems)}\n{NOTHING_WRITTEN}")
    settled = ties.settle(sites, names, base, frozenset(adapter.index for adapter in adapters if adapter.settings.tying))
    if settled.problems:
        raise AdapterError(f"tied embeddings cannot be merged\n{listing(list(settled.problems))}\n{NOTHING_WRITTEN}")
    placed = {key: site.placed() for key, site in sites.items()}
    return Placement(placed, _edits(placed, names, base, untied=settled.untied), settled.equal + _copies(sites), _idle(adapters, names))


def _gather(
    adapter: Adapter,
    contribution: Contribution,
    names: Names,
    base: Mapping[str, Tensor],
    sites: dict[str, Site],
    quantised: frozenset[str],
) -> None:
    """Put one contribution where it belongs; raises AdapterError where it does not fit."""
    fit.refuse_foreign(contribution)
    if isinstance(contribution, Stacked):
        for key, found in fit.stack(adapter, contribution, names, base).items():
            fit.refuse_storage(base[key], quantised)
            site = sites.setdefault(key, Site(base[key]))
            site.steps += found
            site.stacked = True
        return
    spelled = names.parameter(contribution.names)
    assert spelled is not None, "strangers were refused"
    name, parameter = spelled
    weight, source = names.find(name), names.whole(table_source(names, parameter))
    tensor = base[weight.key] if weight else base[source.key] if source else None
    if tensor is not None:
        fit.refuse_storage(tensor, quantised)
    if weight and names.is_ambiguous(weight):
        raise AdapterError(f"{tensor}: another tensor of the base fills the same parameter {parameter}; which one is used cannot be known")
    site = sites.setdefault(weight.key if weight else parameter, Site(tensor))
    if isinstance(contribution, Replacement | Snapshot):
        _take(adapter, contribution, parameter, names, site)
        return
    if isinstance(contribution, Again):
        site.again += [Read("adapter", adapter.index, contribution.value)] if contribution.trained else []
        return
    if tensor is None:
        raise AdapterError(f"{name}: the base has no such weight that something could be added to")
    assert isinstance(contribution, Addition | Addend | TokenRows), "stacks were placed above"
    if adapter.weight != 1.0 and (isinstance(contribution, TokenRows) or (isinstance(contribution, Addition) and contribution.magnitude)):
        raise AdapterError(f"{tensor}: the adapter sets absolute values there, which a --weight of {adapter.weight} cannot scale")
    fit.refuse_forward(adapter, contribution, parameter, names)
    piece = names.table.aliases[name].piece if weight and not weight.fused else None
    site.stacked |= piece is not None
    site.steps += fit.steps(adapter, contribution, fit.layout_of(weight, parameter, names), piece, tensor, site.shape)


def table_source(names: Names, parameter: str) -> str:
    """The parameter whose storage this one shares, or itself."""
    return names.table.tied.get(parameter, parameter)


def _take(adapter: Adapter, contribution: Replacement | Snapshot, parameter: str, names: Names, site: Site) -> None:
    """A tensor that takes the place of the base's; embeddings may have gained or lost rows."""
    value, before = contribution.value, site.tensor
    embedding = parameter in names.table.embeddings
    if isinstance(contribution, Snapshot) and not embedding:
        raise AdapterError(f"{value}: a copy of a base weight that is no embedding; modules_to_save does not name it")
    resized = embedding and before is not None and value.shape[1:] == before.shape[1:]
    if before is not None and value.shape != before.shape and not resized:
        raise AdapterError(f"{before}: the adapter replaces it by a tensor of shape {value.shape}")
    if adapter.weight != 1.0 and isinstance(contribution, Replacement):
        raise AdapterError(f"{value}: a trained tensor takes the base's place, which a --weight of {adapter.weight} cannot scale")
    (site.taken if isinstance(contribution, Replacement) else site.snapshots).append(Read("adapter", adapter.index, value))


def _edits(placed: Mapping[str, Placed], names: Names, base: Mapping[str, Tensor], *, untied: bool) -> Mapping[str, Any]:
    """What the configuration must say of the new tensors; raises AdapterError if embeddings and head would have different heights."""
    found: dict[str, Any] = {ties.FLAG: False} if untied else {}
    keys = [weight.key if (weight := names.whole(name)) else name for name in names.table.embeddings]
    tables = {key: placed[key].shape[0] if key in placed else base[key].shape[0] for key in keys if key in placed or key in base}
    if len(set(tables.values())) > 1 and any(key in placed and key in base and placed[key].shape != base[key].shape for key in keys):
        raise AdapterError(f"the embeddings would have different heights: {tables}. {NOTHING_WRITTEN}")
    if any(key in placed and key in base and placed[key].shape != base[key].shape for key in keys):
        found["vocab_size"] = max(tables.values())
    return found


def _copies(sites: Mapping[str, Site]) -> tuple[Equal, ...]:
    """Snapshots of several adapters, and what one adapter saved twice: one is used, and the others must be the same."""
    held = [(site.snapshots, site.snapshots[1:]) for site in sites.values()] + [(site.taken, site.again) for site in sites.values()]
    return tuple(Equal(used[0], other) for used, others in held if used for other in others)


def _idle(adapters: Iterable[Adapter], names: Names) -> tuple[Read, ...]:
    """Of every layer that the model never calls, what begins as zero: lora_B, but an embedding's A; and lora_B's bias."""
    return tuple(
        Read("adapter", adapter.index, _begun_as_zero(contribution))
        for adapter in adapters
        for contribution in adapter.contributions
        if isinstance(contribution, Addition | Addend) and _is_bypassed(contribution, names)
    )


def _begun_as_zero(contribution: Addition | Addend) -> Tensor:
    if isinstance(contribution, Addend):
        return contribution.value
    return contribution.a if contribution.embedding else contribution.b


def _is_bypassed(contribution: Contribution, names: Names) -> bool:
    """PyTorch's attention reads its output projection as well, unless PEFT wrapped the attention as a whole."""
    if isinstance(contribution, Addend):
        spelled = names.parameter(contribution.names)
        beside = names.whole(f"{spelled[1].removesuffix('.bias')}.weight") if spelled else None
        return beside is not None and beside.layout == "bypassed"
    if not isinstance(contribution, Addition) or contribution.inside:
        return False
    weight = next((weight for name in contribution.names if (weight := names.find(name))), None)
    if weight is None:
        return False
    attention, _, leaf = weight.parameter.rpartition(".out_proj.")
    return weight.layout == "bypassed" or (leaf == "weight" and names.exists(f"{attention}.in_proj_weight"))


def _refuse_strangers(adapter: Adapter, names: Names, base: Mapping[str, Tensor]) -> None:
    """Raises AdapterError naming every adapter tensor whose module the base does not have, with the nearest name that it has."""
    strangers = [contribution for contribution in adapter.contributions if _is_stranger(contribution, names)]
    if strangers:
        count = sum(len(contribution.tensors) for contribution in strangers)
        lines = [f"{tensor}\n    {_hint(c.names[0], names, base)}" for c in strangers[:SHOWN] for tensor in c.tensors]
        raise AdapterError(f"{count} adapter tensors have no place in the base checkpoint\n{listing(lines)}\n{NOTHING_WRITTEN}")


def _is_stranger(contribution: Contribution, names: Names) -> bool:
    if isinstance(contribution, Stacked):
        return not any(names.fillers.get(names.table.aliases[name].parameter) for name in contribution.names)
    spelled = names.parameter(contribution.names)
    tied = spelled is not None and names.whole(table_source(names, spelled[1])) is not None
    fresh = isinstance(contribution, Replacement) and spelled is not None
    return not (tied or fresh or (spelled and names.find(spelled[0])))


def _hint(weight: str, names: Names, base: Mapping[str, Tensor]) -> str:
    """What a stranger may have been meant for."""
    if weight in names.table.unmatched:
        return f"the base has {weight}, but no module of {names.table.architecture} owns it: it is carried, never merged into"
    nearest = difflib.get_close_matches(weight, base, n=1, cutoff=0.0)
    return f"nearest base weight: {base[nearest[0]]}"
