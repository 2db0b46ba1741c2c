"""The ledger: which disk tensor every adapter tensor belongs to, with which factor; in the checkpoint's own namespace.

It is built from the base's names, the adapter files and their configurations, and from nothing that a merge tool has written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from certify.errors import NotInterpretedError
from certify.expect.accounts import Accounts
from certify.expect.places import Orientation, Places
from certify.expect.skeleton import skeleton
from certify.expect.structure import compare_with_peft
from certify.finding import Finding, Outcome
from certify.inputs.adapter import Adapter, AdapterTensor
from certify.inputs.checkpoint import Checkpoint

CODE = "C4"


@dataclass(frozen=True, slots=True)
class Part:
    """One low-rank delta of a tensor: scaling · B · A, transposed where the module stores (in, out).

    a  (rank, in)   b  (out, rank)   scaling: the adapter's α/r or α/√r times the weight that the user gave it
    """

    a: AdapterTensor
    b: AdapterTensor
    rank: int
    scaling: float
    orientation: Orientation


@dataclass(frozen=True)
class Ledger:
    """What must happen to each tensor of the base.

    parts      disk key → the deltas that are added        replaced  disk key → the adapter tensor that takes its place
    unjudged   disk key → why its expectation is unknown
    findings   the accounting: adapter tensors without a place, modules without adapter tensors, fields not understood
    complete   every tensor outside parts, replaced and unjudged must be the base's, bit for bit
    tensors, consumed, peft_modules   counts, one per adapter; peft_modules is None where PEFT itself could not place it
    """

    parts: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    replaced: dict[str, AdapterTensor] = field(default_factory=dict)
    unjudged: dict[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    complete: bool = False
    tensors: tuple[int, ...] = ()
    consumed: tuple[int, ...] = ()
    peft_modules: tuple[int | None, ...] = ()


def build_ledger(base: Checkpoint, adapters: Sequence[Adapter], weights: Sequence[float]) -> Ledger:
    """The ledger of base + Σ weight · adapter. Whatever the gate cannot interpret becomes a finding, never an exception."""
    counts = tuple(len(adapter.tensors) for adapter in adapters)
    try:
        places = Places(skeleton(base.directory), base.tensors)
    except NotInterpretedError as error:
        blind = Finding(CODE, "base: config.json", Outcome.NOT_INTERPRETED, str(error))
        return Ledger(findings=(blind,), tensors=counts, consumed=tuple(0 for _ in adapters), peft_modules=tuple(None for _ in adapters))
    ledger = Ledger(complete=not any(adapter.problems for adapter in adapters))
    findings: list[Finding] = []
    consumed: list[int] = []
    witnessed: list[int | None] = []
    complete = ledger.complete
    for adapter, weight in zip(adapters, weights, strict=True):
        accounts = Accounts(adapter, base, places)
        accounts.settle()
        witnessed.append(compare_with_peft(accounts, skeleton(base.directory)) if accounts.terms else None)
        accounts.demand_targets()
        _enter(ledger, accounts, weight)
        findings += accounts.findings
        consumed.append(accounts.consumed)
        complete &= accounts.complete
    return Ledger(
        ledger.parts, ledger.replaced, ledger.unjudged, tuple(findings), complete, counts, tuple(consumed), tuple(witnessed)
    )  # fmt: skip


def _enter(ledger: Ledger, accounts: Accounts, weight: float) -> None:
    """Adds one adapter's accounts to the ledger; two adapters that both replace a tensor, or replace and add, are not interpreted."""
    ledger.unjudged.update(accounts.unjudged)
    for key, pair in accounts.pairs.items():
        part = Part(accounts.tensor(pair.a), accounts.tensor(pair.b), pair.rank, pair.scaling * weight, pair.orientation)
        ledger.parts[key] = (*ledger.parts.get(key, ()), part)
    for key, name in accounts.replaced.items():
        if key in ledger.replaced:
            ledger.unjudged[key] = "two adapters replace this tensor"
        ledger.replaced[key] = accounts.tensor(name)
        if weight != 1.0:
            ledger.unjudged[key] = f"this tensor is replaced by an adapter of weight {weight}"
    for key in ledger.replaced.keys() & ledger.parts.keys():
        ledger.unjudged[key] = "one adapter replaces this tensor and a delta is added to it as well"
