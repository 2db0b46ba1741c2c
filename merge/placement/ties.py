"""Tied embeddings: one tensor on disk behind two parameters. What the adapter did to each decides whether they stay one. Pure.

Equal changes are made once and the tie stays. Otherwise each parameter gets what it was trained to: the second one is written out, and
`tie_word_embeddings` becomes false.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from merge.catalog import Tensor
from merge.names import Names
from merge.operation import Part, Read
from merge.placement.site import Site

FLAG = "tie_word_embeddings"


@dataclass(frozen=True, slots=True)
class Equal:
    """Two tensors of an adapter that must hold the same numbers, the second one transposed perhaps: only one of them is used."""

    first: Read
    second: Read
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Ties:
    """untied  true where the output keeps its embeddings apart      equal  what that relies on      problems  why it cannot be"""

    untied: bool
    equal: tuple[Equal, ...]
    problems: tuple[str, ...]


def settle(sites: dict[str, Site], names: Names, base: Mapping[str, Tensor], tying: frozenset[int]) -> Ties:
    """Decide every tie that an adapter touches; changes the sites.

    sites  by disk key, or by parameter where the base has no tensor of its own
    tying  the adapters that were trained with ensure_weight_tying
    """
    equal: list[Equal] = []
    problems: list[str] = []
    untied = False
    groups = {source: [t for t, s in names.table.tied.items() if s == source] for source in names.table.tied.values()}
    for source, others in groups.items():
        own = names.whole(source)
        present = [key for other in others if (key := _key(other, names)) in sites]
        if own is None or not (present or own.key in sites):
            continue
        first = sites.setdefault(own.key, Site(base[own.key]))
        seconds = [sites[key] for key in present]
        if first.rows and any(site.changed for site in seconds):
            problems.append(
                f"{own.key}: single rows take trained values there, for what is tied to it as well, and that is trained besides"
            )
            continue
        if not any(site.changed for site in (first, *seconds)) and _parted(first, seconds, tying):
            untied = True
            continue
        if any(site.changed for site in (first, *seconds)):
            adapters = {read.index for site in (first, *seconds) for read in _given(site)}
            if not adapters & tying and not _is_one_bias(source, adapters, (first, *seconds)):
                untied = True
                continue
            for site in (first, *seconds):
                _as_saved(site, first, seconds)
            if len(adapters) > 1 or not all(site.changed for site in (first, *seconds)) or not seconds:
                problems.append(f"{own.key}: ensure_weight_tying promises a change for each of the tied weights, and there is not")
                continue
        for key, second in zip(present, seconds, strict=True):
            if not first.steps and not first.taken:
                first.steps, first.taken, first.snapshots = second.steps, second.taken, first.snapshots or second.snapshots
            elif _shapes(first) == _shapes(second):
                equal += _twins(first, second)
            else:
                problems.append(
                    f"{own.key}: the tied weights were changed in different ways, and ensure_weight_tying says that they were not"
                )
            del sites[key]
    if untied:
        problems += _untie(sites, names, base)
    return Ties(untied, tuple(equal), tuple(problems))


def _untie(sites: dict[str, Site], names: Names, base: Mapping[str, Tensor]) -> list[str]:
    """Give every tied parameter a tensor of its own, beginning as the one that they shared; the problems that stand against it."""
    if names.table.encoder_decoder:
        return [f"{FLAG} scales the outputs of {names.table.architecture} as well: its tied embeddings cannot be kept apart"]
    for other, source in names.table.tied.items():
        own = names.whole(source)
        if own is None:
            return [f"{other}: tied to {source}, which no tensor of the base fills"]
        site = sites.setdefault(_key(other, names), Site(base[own.key]))
        site.tensor = base[own.key]
        if not site.snapshots and not site.taken and own.key in sites:
            site.snapshots = list(sites[own.key].snapshots)
        if not site.taken and not site.steps and own.key in sites and not sites[own.key].changed:
            site.steps = list(sites[own.key].steps)  # rows of an embedding are shared
    return []


def _parted(first: Site, seconds: list[Site], tying: frozenset[int]) -> bool:
    """True where rows were trained of the tied weights that are not the same ones: those of the embedding are shared, those of a head are
    not; PEFT lets nobody name other rows of each and tie them."""
    rows = [second for second in seconds if second.rows]
    if not first.rows:
        return bool(rows)
    return any(_shapes(first) != _shapes(second) for second in rows) and not {read.index for read in _given(first)} & tying


def _key(parameter: str, names: Names) -> str:
    own = names.whole(parameter)
    return own.key if own else parameter


def _is_one_bias(source: str, adapters: set[int], sites: tuple[Site, ...]) -> bool:
    """True where one adapter saved every side of a tied bias: PEFT trains biases in place, so that it stayed one parameter, saved twice."""
    return source.endswith("bias") and len(adapters) == 1 and len(sites) > 1 and all(site.taken and not site.steps for site in sites)


def _given(site: Site) -> list[Read]:
    return [*site.taken, *(read for step in site.steps for read in step.reads)]


def _twins(first: Site, second: Site) -> list[Equal]:
    """The pairs that must be equal for one change to stand for both: a head's A is an embedding's Bᵀ, its B the embedding's Aᵀ."""
    found = [Equal(a, b) for a, b in zip(first.taken, second.taken, strict=True)]
    for one, other in zip(first.steps, second.steps, strict=True):
        if isinstance(one, Part) and isinstance(other, Part) and one.transposed != other.transposed:
            found += [Equal(one.a, other.b, True), Equal(one.b, other.a, True)]
        else:
            found += [Equal(a, b) for a, b in zip(one.reads, other.reads, strict=True)]
    return found


def _shapes(site: Site) -> list[object]:
    """What twins must have in common, before any number is read."""
    return [len(site.taken), *((type(step), getattr(step, "scaling", 0.0), getattr(step, "indices", ())) for step in site.steps)]


def _as_saved(site: Site, first: Site, seconds: list[Site]) -> None:
    """PEFT saves the twin of a module that was trained whole without naming it in modules_to_save: what looks like a copy is trained."""
    if any(other.taken for other in (first, *seconds)) and not site.changed:
        site.taken, site.snapshots = site.snapshots, []
