"""Stream a LoRA adapter into a sharded checkpoint with bounded memory, crash-safe and resumable."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch and transformers take seconds to import: only those pay who merge
    from merge.manifest import Manifest
    from merge.planner import Options, Plan
    from merge.task import Merge

__all__ = ["merge", "plan"]

Adapters = str | Path | Sequence[str | Path]


def merge(
    base: str | Path,
    adapter: Adapters,
    out: str | Path,
    *,
    weights: Sequence[float] = (),
    output_dtype: str | None = None,
    rounding: str = "",
    rounds: int | None = None,
    seed: int = 0,
    block_mib: int = 1,
    workers: int | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write base + adapter to `out`, or continue where an earlier call stopped; returns the manifest.

    base          directory of a safetensors checkpoint      out  a new directory
    adapter       directory of a PEFT adapter, or several of them: base + Σ weight · Δ, summed in float32 and rounded once
    weights       one factor per adapter; default: 1 for each
    output_dtype  "same", "bf16", "fp16" or "fp32": what the base's main dtype becomes, and its quantised weights; "same" unless given,
                  but for a quantised base it must be given
    rounding      "nearest", "faithful" (no error in the inputs that the adapter answers to) or "stochastic"; unless given, "faithful" for
                  a quantised base that keeps its format, else "nearest"
    rounds, seed  of faithful, at most; of stochastic
    block_mib     stored mebibytes per slab; part of the plan, since it can move last bits
    workers       threads; default: the machine's cores, at most 8; the bytes do not depend on it
    overwrite     remove a finished or half-finished output of ours first

    Raises merge.errors.MergeError: nothing was written if its exit_code is 2 or 3; it can be continued if it is 4.
    """
    from merge import engine
    from merge.errors import MergeError
    from merge.monitor import Monitor

    if workers is not None and workers < 1:
        raise MergeError("workers: at least 1 was expected. Nothing was written.")
    work = _prepared(base, adapter, out, weights, output_dtype, _options(rounding, rounds, seed, block_mib))
    return engine.run(work, Monitor(), workers=workers or default_workers(), overwrite=overwrite).manifest


def plan(
    base: str | Path,
    adapter: Adapters,
    out: str | Path,
    *,
    weights: Sequence[float] = (),
    output_dtype: str | None = None,
    rounding: str = "",
    rounds: int | None = None,
    seed: int = 0,
    block_mib: int = 1,
) -> Plan:
    """What `merge` would do, from headers alone; raises merge.errors.MergeError where it would refuse. Writes nothing."""
    return _prepared(base, adapter, out, weights, output_dtype, _options(rounding, rounds, seed, block_mib)).plan


def default_workers() -> int:
    """Threads that a merge uses unless told otherwise."""
    return min(8, len(os.sched_getaffinity(0)))


def _options(rounding: str, rounds: int | None, seed: int, block_mib: int) -> Options:
    from merge.planner import Options
    from merge.rounding import ROUNDS

    return Options(rounding=rounding, block_mib=block_mib, rounds=ROUNDS if rounds is None else rounds, seed=seed)


def _prepared(
    base: str | Path, adapter: Adapters, out: str | Path, weights: Sequence[float], output_dtype: str | None, options: Options
) -> Merge:
    from merge.forecast import prepared

    folders = (adapter,) if isinstance(adapter, str | Path) else tuple(adapter)
    return prepared(Path(base), [Path(folder) for folder in folders], Path(out), output_dtype, options, weights)
