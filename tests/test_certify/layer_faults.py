"""Faults that a layer must show, planted in the sound merges of `layer_cases`, and what C9 alone says of them."""

from collections.abc import Callable

import torch
from torch import Tensor

from certify.finding import Finding, Outcome
from tests.test_certify.layer_cases import EXPERTS, FAMILIES, MLP, Case

Plant = Callable[[Case, dict[str, Tensor]], None]  # spoils the tensors of a sound merge


def _key(case: Case, role: str) -> str:
    return f"{case.family.layer}.{getattr(case.family, role)}.weight"


def _scaled(role: str, factor: float) -> Plant:
    def plant(case: Case, tensors: dict[str, Tensor]) -> None:
        key = _key(case, role)
        tensors[key] = case.rounded(key, factor * case.deltas[key])

    return plant


def _transposed(case: Case, tensors: dict[str, Tensor]) -> None:
    key = _key(case, "o")
    tensors[key] = case.rounded(key, case.deltas[key].T)


def _expert(case: Case, number: int) -> list[str]:
    return [f"{case.family.layer}.mlp.experts.{number}.{part}.weight" for part in MLP]


def _experts_swapped(case: Case, tensors: dict[str, Tensor]) -> None:
    for one, other in zip(_expert(case, 3), _expert(case, 8), strict=True):
        tensors[one], tensors[other] = tensors[other], tensors[one]


def _expert_deltas_swapped(case: Case, tensors: dict[str, Tensor]) -> None:
    for one, other in zip(_expert(case, 3), _expert(case, 8), strict=True):
        tensors[one], tensors[other] = case.rounded(one, case.deltas[other]), case.rounded(other, case.deltas[one])


def _expert_missing(case: Case, tensors: dict[str, Tensor]) -> None:
    tensors |= {key: case.held[key] for key in _expert(case, 5)}


def _expert_down_missing(case: Case, tensors: dict[str, Tensor]) -> None:
    tensors[_expert(case, 5)[2]] = case.held[_expert(case, 5)[2]]


def _other_router(case: Case, tensors: dict[str, Tensor]) -> None:
    key = f"{case.family.layer}.mlp.gate.weight"
    torch.manual_seed(3)
    tensors[key] = (torch.randn(tensors[key].shape) * 0.05).to(tensors[key].dtype)


def _router_rows_swapped(case: Case, tensors: dict[str, Tensor]) -> None:
    key = f"{case.family.layer}.mlp.gate.weight"
    order = torch.arange(EXPERTS)
    order[3], order[8] = 8, 3
    tensors[key] = tensors[key][order]


FAULTS: dict[str, Plant] = {
    "q missing": _scaled("q", 0.0), "o missing": _scaled("o", 0.0), "o doubled": _scaled("o", 2.0), "o × 0.95": _scaled("o", 0.95),
    "o transposed": _transposed,
}  # fmt: skip
DENSE_FAULTS: dict[str, Plant] = {"down missing": _scaled("down", 0.0)}
EXPERT_FAULTS: dict[str, Plant] = {
    "two experts swapped": _experts_swapped, "deltas of two experts swapped": _expert_deltas_swapped,
    "an expert's deltas missing": _expert_missing, "an expert's down missing": _expert_down_missing,
    "another router": _other_router, "two rows of the router swapped": _router_rows_swapped,
}  # fmt: skip


def faults(family: str) -> dict[str, Plant]:
    """Those that this family has a place for."""
    chosen = FAMILIES[family]
    return FAULTS | (DENSE_FAULTS if chosen.down else {}) | (EXPERT_FAULTS if chosen.experts else {})


def told(case: Case, findings: list[Finding]) -> str:
    """caught, undecided, or passed: what C9 alone says of a fault in the layer of this case."""
    if any(finding.outcome is Outcome.FAILED for finding in findings):
        return "caught"
    there = next(finding for finding in findings if finding.subject == case.family.layer)
    return str(there.outcome)
