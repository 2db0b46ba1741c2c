"""What headers cannot say and must be known before a byte is written: the adapters are finite, agree with themselves, and fit this base."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch

from merge.adapters import Adapter
from merge.arithmetic import Delta
from merge.errors import NOTHING_WRITTEN, AdapterError, listing
from merge.operation import Operation, Part, Read
from merge.planner import Plan
from merge.runners.inputs import Buffers, Factors, Inputs

SAMPLED = 4  # modules whose base weight is looked at
SLABS = 4  # of each of them: a million numbers or so, whose cosine with a stranger is about 0.001
OVERLAP = (0.5, 1.5)  # of ⟨Δ, W⟩ / ⟨Δ, Δ⟩: 0.97 for a PiSSA that was not converted, at most 0.13 in size for an ordinary LoRA
COSINE = 0.02  # between Δ and W, above which that ratio is no accident of a small Δ; PiSSA of rank 16 on 1024 × 1024 noise: 0.25
Thing = TypeVar("Thing")


def refuse_damaged(plan: Plan, adapters: Iterable[Adapter], inputs: Inputs) -> None:
    """Raises AdapterError, all faults of a kind in one message. Reads the adapters whole, tensor by tensor, and little of the base."""
    _refuse(
        "adapter tensors are damaged",
        [
            found
            for adapter in adapters
            for tensor in adapter.tensors.values()
            if (found := _not_finite(Read("adapter", adapter.index, tensor), inputs))
        ],
    )
    different = [
        pair for pair in plan.equal if not _same(inputs.tensor(pair.first), inputs.tensor(pair.second), transposed=pair.transposed)
    ]
    _refuse(
        "tensors that must hold the same numbers do not",
        [f"{pair.first.tensor}  and  {pair.second.tensor.name}" for pair in different],
    )
    _refuse(
        "adapted weights are read by the model without calling their layers: the adapter never had an effect there, and is not zero",
        [str(read.tensor) for read in plan.zero if bool(inputs.tensor(read).any())],
    )
    _refuse_unconverted(plan, inputs)


def _refuse(what: str, faults: list[str]) -> None:
    if faults:
        raise AdapterError(f"{len(faults)} {what}\n{listing(faults)}\n{NOTHING_WRITTEN}")


def _not_finite(read: Read, inputs: Inputs) -> str:
    count = int((~torch.isfinite(inputs.tensor(read))).sum())
    return f"{read.tensor}: {count} of {read.tensor.elements} values are NaN or infinite" if count else ""


def _same(first: torch.Tensor, second: torch.Tensor, *, transposed: bool) -> bool:
    return torch.equal(first.float(), (second.T if transposed else second).float())


def _refuse_unconverted(plan: Plan, inputs: Inputs) -> None:
    """A PiSSA or CorDA adapter whose configuration was reset to a plain one: its delta lies in the base already, whole.

    Source: Meng et al. 2024, arXiv:2404.02948: W = W_residual + scaling · B₀ · A₀, where B₀ · A₀ are W's first singular directions.
    """
    plain = [operation for operation in plan.operations if _is_plain(operation)]
    buffers = Buffers()
    seen = [_overlap(operation, inputs, buffers) for operation in _spread(plain, SAMPLED)]
    if seen and all(OVERLAP[0] < ratio < OVERLAP[1] and cosine > COSINE for ratio, cosine in seen):
        ratios = ", ".join(f"{ratio:.2f}" for ratio, _ in seen)
        raise AdapterError(
            f"the base holds this adapter's delta already (⟨Δ, W⟩ / ⟨Δ, Δ⟩ = {ratios}; an ordinary LoRA has about 0): "
            "it looks like a PiSSA or CorDA adapter that was not converted, whose training took B·A out of the base.\n"
            f"Convert it where it was trained, or give the residual base. {NOTHING_WRITTEN}"
        )


def _spread(things: Sequence[Thing], count: int) -> Sequence[Thing]:
    """At most `count` of them, evenly spread."""
    return things[:: max(1, len(things) // count)][:count]


def _is_plain(operation: Operation) -> bool:
    """True where one whole product is all that is added."""
    if operation.kind != "merge" or len(operation.parts) != 1 or len(operation.target.shape) != 2:
        return False
    part = operation.parts[0]
    return isinstance(part, Part) and part.a.tensor.shape[0] == part.b.tensor.shape[1] and part.rows == (0, operation.slabs.length)


def _overlap(operation: Operation, inputs: Inputs, buffers: Buffers) -> tuple[float, float]:
    """(⟨Δ, W⟩ / ⟨Δ, Δ⟩, their cosine) in a few slabs of one module, by thin products: ⟨s·L·R, W⟩ = s·⟨L, W·Rᵀ⟩, ‖L·R‖² = ⟨Lᵀ·L, R·Rᵀ⟩."""
    factors = Factors(operation, inputs)
    (delta,) = factors.steps()
    assert isinstance(delta, Delta), "chosen as one"
    gram, dot, base = torch.zeros(len(delta.right), len(delta.right), dtype=torch.float64), 0.0, 0.0
    for start, stop in _spread(tuple(operation.slabs), SLABS):
        slab, left = factors.exact(start, stop, buffers, steps=()), delta.left[start:stop].double()
        gram += left.T @ left
        dot += delta.scaling * float((left * (slab @ delta.right.T)).sum())
        base += float(torch.linalg.vector_norm(slab)) ** 2
    own = delta.scaling**2 * float((gram * (delta.right @ delta.right.T)).sum())
    return (dot / own, dot / (own * base) ** 0.5) if own > 0 and base else (0.0, 0.0)
