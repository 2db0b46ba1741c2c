"""One unit in all its versions: the distances that are judged, and what they may be at most."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from certify.bounds import U32
from certify.layers.answers import EXPERTS, OUTPUT, Answer, first_tensor
from certify.layers.tolerance import admissible, float32_noise, tail
from certify.layers.unit import Call, Unit
from certify.layers.weights import Version

RESIDUAL = 4  # roundings of ‖u‖: two sums with the residual stream in a layer, in two answers (Higham §3.1)


@dataclass
class Link:
    """One measure: distances and what they may be, float64, one number, or one per expert.

    exact      ‖x − u‖     exact_most      of it        base_u   ‖b − u‖
    merged     ‖m − r‖     merged_most     of it        rounding ‖r − u‖     choices  N
    """

    exact: Tensor
    exact_most: Tensor
    base_u: Tensor
    rounding: Tensor
    choices: Tensor
    merged: Tensor
    merged_most: Tensor
    merged_u: Tensor


@dataclass
class Trial:
    """What was found out about one unit.

    size          ‖u‖, of a layer what it adds to its input           flips  tokens that changed experts between two versions
    unseen        groups of disk keys whose missing delta would pass   idle   adapted keys that were never read
    """

    size: float
    links: dict[str, Link] = field(default_factory=dict)
    flips: dict[str, int] = field(default_factory=dict)
    unseen: list[frozenset[str]] = field(default_factory=list)
    idle: set[str] = field(default_factory=set)
    passed_on: object = None
    tokens: int = 0


def untouched(unit: Unit, call: Call) -> tuple[Answer, float]:
    """(the base's answer, ‖m − r‖ over all measures). r: the base in the dtype that was stored."""
    u = unit.answer(Version("unmerged"), call)
    r = unit.answer(Version("rounded"), call, u) if _converted(unit) else u
    m = unit.answer(Version("merged"), call, u)
    return u, sum(float(m.distance(r, measure).sum()) for measure in r.measures) + m.flips(r)


def touched(unit: Unit, call: Call, *, layer: bool) -> Trial:
    """Every version of one unit on the same arguments; at most five answers are held at a time."""
    weights = unit.weights
    weights.used, weights.freedom = set(), {}
    u = unit.answer(Version("unmerged"), call)
    r = unit.answer(Version("rounded"), call, u)
    trial = Trial(_size(u, call, layer=layer), passed_on=u.passed_on, tokens=u.tokens)
    trial.idle = unit.touched - weights.used
    exact, noise, stored = _first_link(unit, call, u, r)
    m = unit.answer(Version("merged"), call, u)
    a = unit.answer(Version("admissible"), call, u)
    b = unit.answer(Version("base"), call, u)
    trial.flips = {"merged_rounded": m.flips(r), "free_rounded": a.flips(r), "rounded_unmerged": r.flips(u)}
    for measure in r.measures:
        choices, ratio = _choices(unit, measure)
        off = a.difference(r, measure)
        reach = admissible(off, a.distance(r, measure), stored[measure], choices, ratio, each=measure.startswith(EXPERTS))
        trial.links[measure] = Link(
            exact[measure], noise[measure] + _residual(u, measure), b.distance(u, measure), r.distance(u, measure), choices,
            m.distance(r, measure), torch.where(choices > 0, reach + noise[measure], 0.0), m.distance(u, measure),
        )  # fmt: skip
    del m, a, b
    trial.unseen = _unseen(unit, call, u, r, trial)
    return trial


def _first_link(unit: Unit, call: Call, u: Answer, r: Answer) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """By measure: ‖x − u‖, what float32 allows of it, and ‖r − x‖."""
    x = unit.answer(Version("exact"), call, u)
    shaken = unit.answer(Version("shaken"), call, u)
    tails = {measure: tail(shaken.difference(x, measure), each=measure.startswith(EXPERTS)) for measure in x.measures}
    noise = {name: float32_noise(shaken.distance(x, name), unit.longest, tails[name]) for name in x.measures}
    return {name: x.distance(u, name) for name in x.measures}, noise, {name: r.distance(x, name) for name in x.measures}


def _residual(u: Answer, measure: str) -> Tensor:
    """What the sums with the residual stream may add to ‖x − u‖: weights were shaken, these sums round as well."""
    size = u.measures[measure].double().norm(dim=-1)
    most: Tensor = RESIDUAL * U32 * (size if measure.startswith(EXPERTS) else size.norm().reshape(1))
    return most


def _unseen(unit: Unit, call: Call, u: Answer, r: Answer, trial: Trial) -> list[frozenset[str]]:
    """The groups whose deltas could be missing without a failure: r without them is as near to r as m may be."""
    experts = unit.keys_of_experts
    unseen = []
    for group in unit.groups():
        left = unit.answer(Version("rounded", group), call, u)
        seen = {name: left.distance(r, name) > link.merged_most for name, link in trial.links.items()}
        asked = [(name, number) for name, members in experts.items() for number, keys in enumerate(members) if keys & group]
        if asked and all(name in seen for name, _ in asked):
            visible = all(bool(seen[name][number]) for name, number in asked)
        else:
            visible = any(bool(passed.any()) for passed in seen.values())
        if not visible:
            unseen.append(group)
    return unseen


def _choices(unit: Unit, measure: str) -> tuple[Tensor, Tensor]:
    """(N, room/noise): of the unit, or of each expert."""
    members = unit.keys_of_experts[measure] if measure.startswith(EXPERTS) else [unit.keys]
    found = [unit.weights.choices(keys) for keys in members]
    return tuple(torch.tensor(numbers, dtype=torch.float64) for numbers in zip(*found, strict=True))  # type: ignore[return-value]


def _size(u: Answer, call: Call, *, layer: bool) -> float:
    rows = u.measures[OUTPUT]
    if layer:
        given = first_tensor(call)
        if given.numel() == rows.numel():
            rows = rows - given.reshape(rows.shape).float()
    return float(rows.double().norm())


def _converted(unit: Unit) -> bool:
    """Whether the merged checkpoint stores something of this unit in another dtype than the base."""
    base, merged = unit.weights.base.tensors, unit.weights.merged.tensors
    return any(base[key].dtype != merged[key].dtype for key in unit.keys if merged[key].numbers is not None)
