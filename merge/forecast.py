"""What a merge will cost before it is begun: memory; and for a quantised base what each choice of output costs: disk, and fine-tune."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from merge import encodings
from merge.encodings import Grid
from merge.errors import NOTHING_WRITTEN, UndecidedError
from merge.operation import Operation, Part
from merge.planner import Options, Plan
from merge.runners.inputs import Buffers, Factors, Inputs
from merge.shards import MIB
from merge.source import Reader
from merge.storing import STRIP
from merge.task import Merge

SAMPLED = 8  # weights of which one slab is looked at
IMPORTS = 305 * MIB  # resident once torch and transformers are imported and the meta model is built, measured on Linux x86-64
PLANNED = 4096  # bytes per operation in memory, journal entries included, measured on a 46,183-tensor plan
STRIPS = {"nearest": 8, "stochastic": 28, "faithful": 32}  # bytes per element of a strip: the float32 blocks of merge/storing.py
MEASURED = 20  # bytes per element of a slab whose Δ is no plain product: the base's numbers, Δ, and what is left of it outside Q
READ, WRITTEN = 32, 12  # bytes per element of A and of B beside the file's: float32, both layouts of Q, two float64; float32, Δ·Q


def prepared(
    base: Path, adapters: Sequence[Path], out: Path, output_dtype: str | None, options: Options, weights: Sequence[float] = ()
) -> Merge:
    """One merge. output_dtype  None: the base's own, if it is plain

    Raises UndecidedError where the base is quantised and nothing was chosen.
    """
    work = Merge(base, tuple(adapters), out, replace(options, output_dtype=output_dtype or "same"), tuple(weights))
    if output_dtype is None and work.scheme:
        other = replace(work, options=replace(work.options, output_dtype="bf16"))
        kept = retention(work)
        same, bf16 = (f"about {share:.2f} of the delta" for share in kept) if kept else ("nothing to lose", "nothing to lose")
        raise UndecidedError(
            f"{base} is quantised ({work.scheme.method}); say what the output is to be:\n"
            f"  --output-dtype same   {work.disk:>19,} bytes; `--rounding nearest` would keep {same}; faithful is the default there\n"
            f"  --output-dtype bf16   {other.disk:>19,} bytes; it keeps {bf16}\n"
            f"Measured on a slab each of at most {SAMPLED} merged weights. {NOTHING_WRITTEN}"
        )
    return work


def memory(plan: Plan, workers: int) -> int:
    """Peak resident bytes: the imports, the plan itself, and per worker the operation that needs most."""
    rule = plan.options.rounding
    most = max((_slab_bytes(operation, rule) + _factor_bytes(operation) for operation in plan.operations), default=0)
    return IMPORTS + PLANNED * sum(1 for _ in plan.operations) + workers * most


def _slab_bytes(operation: Operation, rule: str) -> int:
    """One slab as it is stored, read and written in one place where both are alike; in float32; and what rounding puts beside it."""
    target, read, cut = operation.target, operation.reads[0].tensor, operation.cut
    share = min(1.0, cut.height / max(1, cut.length))
    elements = int(share * read.elements)
    stored = share * (read.size if read.dtype == target.dtype else read.size + target.size)
    if operation.verbatim:
        return int(stored)
    exact = all(isinstance(part, Part) for part in operation.parts)
    strip = max(min(elements, STRIP), elements // max(1, cut.height)) if operation.parts else 0
    return int(stored) + 4 * elements + (0 if exact else MEASURED * elements) + STRIPS[rule] * strip


def _factor_bytes(operation: Operation) -> int:
    """The adapter's factors as they are stored and as they are worked with; experts share one stored tensor."""
    reads = {(read.index, read.tensor.file, read.tensor.start): read.tensor for part in operation.parts for read in part.reads}
    worked = sum(READ * p.a.tensor.elements + WRITTEN * p.b.tensor.elements for p in operation.parts if isinstance(p, Part))
    return worked + sum(tensor.size for tensor in reads.values())


def retention(work: Merge) -> tuple[float, float] | None:
    """⟨Δ', Δ⟩ / ⟨Δ, Δ⟩ of rounding to nearest: in the base's own codes, and in bf16; None where no quantised weight is merged.

    Δ' is what is stored less what the base stores. Measured on one slab each of a few weights, on the base's own scales.
    """
    merged = [operation for operation in work.plan.operations if operation.kind == "merge" and operation.scale]
    if not merged:
        return None
    base, adapters = Reader(work.base), tuple(Reader(folder) for folder in work.adapters)
    inputs, whole, parts = Inputs(base, adapters), 0.0, torch.zeros(2, dtype=torch.float64)
    try:
        for operation in merged[:: -(-len(merged) // SAMPLED)]:
            own, kept = _kept(operation, inputs)
            whole, parts = whole + own, parts + kept
    finally:
        for reader in (base, *adapters):
            reader.close()
    return (float(parts[0]) / whole, float(parts[1]) / whole) if whole else None


def _kept(operation: Operation, inputs: Inputs) -> tuple[float, torch.Tensor]:
    """(⟨Δ, Δ⟩, ⟨Δ', Δ⟩ in codes and in bf16) of the slab in the middle of one weight."""
    factors, slabs = Factors(operation, inputs), list(operation.cut)
    start, stop = slabs[len(slabs) // 2]
    before = factors.exact(start, stop, Buffers(), steps=()).double()
    exact = factors.exact(start, stop, Buffers())
    delta = exact.double() - before
    kept = [((_rounded(exact, grid, start).double() - before) * delta).sum() for grid in (factors.source(), Grid(encodings.named("BF16")))]
    return float(delta.square().sum()), torch.stack(kept)


def _rounded(exact: torch.Tensor, grid: Grid, start: int) -> torch.Tensor:
    """The nearest numbers of a grid."""
    stored, found = grid.view(torch.empty(4 * exact.numel(), dtype=torch.uint8), tuple(exact.shape)), torch.empty_like(exact)
    grid.encode(exact.clone(), stored, start)
    grid.decode(stored, found, start)
    return found
