"""An adapter whose configuration is lost, held against base and merged: where its pairs belong, and what they say about the scaling."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from certify.bounds import Delta
from certify.errors import DamagedError, NotInterpretedError
from certify.expect.expectation import Part, factors
from certify.expect.names import LORA_A, LORA_B, PREFIX
from certify.expect.places import Places
from certify.expect.skeleton import skeleton
from certify.inputs.adapter import CONFIG, Adapter
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.dtypes import FLOATS
from certify.screen.scaling import Fit, fit, groups, reading
from certify.screen.tensor import Touch

SHOWN = 3  # names per sentence


@dataclass(frozen=True)
class Trace:
    """What an adapter without configuration says. findings: sentences, advice; figures: JSON data; reason: why there are no fits."""

    fits: tuple[Fit, ...]
    findings: tuple[str, ...]
    figures: dict[str, Any]
    reason: str = ""


def trace(base: Checkpoint, merged: Checkpoint, adapter: Adapter, touches: Mapping[str, Touch]) -> Trace:
    """Fits every pair of the adapter. Damaged and unknown tensors become sentences; never raises for what the files hold."""
    findings = [f"{file}: {problem}" for file, problem in adapter.problems if file != CONFIG]
    try:
        places = Places(skeleton(base.directory), base.tensors)
    except NotInterpretedError as error:
        return Trace((), tuple(findings), {}, str(error))
    fits: list[Fit] = []
    placed: set[str] = set()
    for a, b in _pairs(adapter):
        try:
            name, delta = _placed(adapter, places, base, a, b)
            if name in placed:
                raise DamagedError(f"another pair belongs to {name} as well")
            placed.add(name)
            fits.append(fit(name, base.tensors[name], _twin(name, base, merged), delta))
        except DamagedError as error:
            findings.append(f"{a}: {error}")
    findings += _judged(fits)
    others = [name for name in adapter.tensors if not name.endswith((LORA_A, LORA_B))]
    findings += _listed("{n} of the adapter {are} no lora_A or lora_B and not looked at", others)
    beyond = [name for name, touch in touches.items() if touch.touched and name not in placed]
    findings += _listed("{n} changed, of which this adapter says nothing", beyond) if not others else []
    return Trace(tuple(fits), tuple(findings), _figures(fits), "" if fits else "the adapter holds no pair that has a place in the base")


def told(found: Trace) -> list[str]:
    """The scalings, one sentence each."""
    sentences = []
    for group in groups(found.fits):
        ranks = ", ".join(str(rank) for rank in sorted({one.rank for one in group.fits}))
        many = f"{len(group.fits):,} modules" if len(group.fits) > 1 else group.fits[0].name
        sentences.append(f"between {group.low:.7g} and {group.high:.7g} in {many} of rank {ranks}: {reading(group.fits)}")
    fitted = [one for one in found.fits if not one.empty and not one.silent]
    if len(sentences) > 1 and len({one.rank for one in fitted}) > 1:
        sentences.append(f"all {len(fitted):,} modules together: {reading(fitted)}")
    return sentences


def _pairs(adapter: Adapter) -> Iterator[tuple[str, str]]:
    stems = {name.removesuffix(LORA_A).removesuffix(LORA_B) for name in adapter.tensors if name.endswith((LORA_A, LORA_B))}
    return ((stem + LORA_A, stem + LORA_B) for stem in sorted(stems))


def _placed(adapter: Adapter, places: Places, base: Checkpoint, a: str, b: str) -> tuple[str, Delta]:
    """(disk key, both factors as it is stored). Raises DamagedError where the pair does not fit anything."""
    for name in (a, b):
        if name not in adapter.tensors or adapter.tensors[name].dtype not in FLOATS:
            raise DamagedError(f"{name} is not in the file, or no float tensor")
    path = f"{a.removeprefix(PREFIX).removesuffix(LORA_A)}.weight"
    place = places.find(path)
    if place is None or place.orientation is None:
        raise DamagedError(f"{path} is no linear weight of the base")
    A, B, weight = adapter.tensors[a], adapter.tensors[b], base.tensors[place.key]
    out, into = weight.shape if place.orientation == "out,in" else weight.shape[::-1]
    if len(A.shape) != 2 or A.shape[1] != into or B.shape != (out, A.shape[0]) or weight.dtype not in FLOATS:
        raise DamagedError(f"A {A.shape} and B {B.shape} do not fit {place.key} {weight.described()}")
    return place.key, factors(Part(A, B, A.shape[0], 1.0, place.orientation))


def _twin(name: str, base: Checkpoint, merged: Checkpoint) -> Any:
    found = merged.tensors.get(name)
    if found is None or found.shape != base.tensors[name].shape or found.dtype not in FLOATS:
        raise DamagedError(f"merged has no float tensor {name} of this shape")
    return found


def _judged(fits: list[Fit]) -> Iterator[str]:
    for one in fits:
        if one.empty:
            near = "" if one.nearest is None else f"; s ≈ {one.nearest:.5g} explains {one.share or 0:.1%} of its telling elements"
            yield f"{one.name}: no scaling makes it a once-rounded merge of this adapter{near}"
    yield from _listed("{n} unmerged, or below the grid: a scaling of 0 explains {them}", [one.name for one in fits if one.silent])


def _listed(sentence: str, names: list[str]) -> list[str]:
    if not names:
        return []
    many = len(names) > 1
    shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
    counted = f"{len(names):,} tensor{'s' if many else ''}"
    return [f"{sentence.format(n=counted, are='are' if many else 'is', them='them' if many else 'it')}: {shown}"]


def _figures(fits: list[Fit]) -> dict[str, Any]:
    """Per module; the interval of a module that no scaling explains is null, and so is an end that is open."""

    def interval(one: Fit) -> list[float | None] | None:
        return None if one.empty else [end if isfinite(end) else None for end in (one.low, one.high)]

    return {one.name: {"rank": one.rank, "scaling": interval(one)} for one in fits}
