"""How much of the fine-tune will survive storage: a few real weights merged in memory, by every rule that one may choose."""

from collections.abc import Mapping
from dataclasses import replace

from merge import fidelity
from merge.operation import Operation
from merge.runners.inputs import Buffers, Factors, Inputs
from merge.runners.local import made
from merge.source import Reader
from merge.storing import Rule
from merge.task import Merge

RULES = ("nearest", "faithful")


def retention(work: Merge, count: int) -> dict[str, dict[str, dict[str, float]]]:
    """Rule → tensor → its figures, "" for all of them together (merge/fidelity.py).

    The tensors are spread over the whole merge and are read whole; nothing is written.
    """
    merged = [operation.target.name for operation in work.plan.operations if operation.kind == "merge"]
    count = min(count, len(merged))
    names = [merged[place * len(merged) // count] for place in range(count)]
    return {rule: _figures(replace(work, options=replace(work.options, rounding=rule)), names) for rule in RULES} if names else {}


def _figures(work: Merge, names: list[str]) -> dict[str, dict[str, float]]:
    options, wanted = work.plan.options, set(names)
    rule = Rule(options.rounding, options.rounds, options.seed)
    base, adapters = Reader(work.base), tuple(Reader(folder) for folder in work.adapters)
    inputs, sums, split = Inputs(base, adapters), {}, set()
    try:
        for operation in work.plan.operations:
            if operation.target.name in wanted:
                sums[operation.target.name] = _sums(operation, inputs, rule)
                split |= {operation.target.name} if rule.name != "faithful" and not operation.whole else set()
    finally:
        for reader in (base, *adapters):
            reader.close()
    return fidelity.table(sums, rule.name, split)


def _sums(operation: Operation, inputs: Inputs, rule: Rule) -> fidelity.Sums:
    factors, buffers = Factors(operation, inputs), Buffers()
    found = (made(operation, factors, start, stop, buffers, inputs, rule)[1] for start, stop in operation.slabs)
    return fidelity.folded(sums for sums in found if sums)


def worst(figures: Mapping[str, Mapping[str, float]]) -> tuple[str, float] | None:
    """The tensor that keeps least, and how much."""
    kept = {name: own["retention"] for name, own in figures.items() if name != fidelity.WHOLE and "retention" in own}
    return min(kept.items(), key=lambda pair: pair[1]) if kept else None
