"""The ledger: which disk tensor every adapter tensor belongs to, with which factor; in the checkpoint's own namespace.

It is built from the base's names, the adapter files and their configurations, and from nothing that a merge tool has written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from certify.errors import NotInterpretedError
from certify.expect.accounts import Accounts
from certify.expect.compose import Composed, compose
from certify.expect.declared import Declared
from certify.expect.expectation import Expectation, Part
from certify.expect.literal import LiteralNames
from certify.expect.place import Names
from certify.expect.places import Places
from certify.expect.replication import changes, expanded, hold_alike
from certify.expect.skeleton import skeleton
from certify.expect.structure import compare_with_peft
from certify.expect.terms import read_terms, uninterpreted
from certify.finding import Finding, Outcome
from certify.inputs.adapter import Adapter, AdapterTensor
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.strict_json import read_object

CODE = "C4"
LITERAL = "names are taken literally"


@dataclass(frozen=True)
class Ledger:
    """What must happen to each tensor of the base.

    parts      disk key → low-rank deltas on all rows of a matrix      replaced  disk key → the adapter tensor that takes its place
    composed   disk key → any other recipe             new  new key → the adapter's tensor of a head that the base has not
    base       the base as the adapters saw it: with the layers that they repeat, a head of its own, a grown vocabulary; None: as it is
    declared   differences that the adapters declare   notes  what a reader of the certificate should know
    unjudged   disk key → why its expectation is unknown
    findings   the accounting: adapter tensors without a place, modules without adapter tensors, fields not understood
    complete   every tensor outside of all these must be the base's, bit for bit
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
    composed: dict[str, Expectation] = field(default_factory=dict)
    new: dict[str, AdapterTensor] = field(default_factory=dict)
    base: Checkpoint | None = None
    declared: Declared = field(default_factory=Declared)
    notes: tuple[str, ...] = ()

    @cached_property
    def touched(self) -> set[str]:
        """Every tensor that is not simply the base's."""
        return {*self.parts, *self.replaced, *self.composed, *self.new}


def build_ledger(base: Checkpoint, adapters: Sequence[Adapter], weights: Sequence[float]) -> Ledger:
    """The ledger of base + Σ weight · adapter. Whatever the gate cannot interpret becomes a finding, never an exception."""
    counts = tuple(len(adapter.tensors) for adapter in adapters)
    try:
        seen, places, declared, notes = _as_trained(base, adapters)
    except NotInterpretedError as error:
        blind = Finding(CODE, "base: config.json", Outcome.NOT_INTERPRETED, str(error))
        return Ledger(findings=(blind,), tensors=counts, consumed=tuple(0 for _ in adapters), peft_modules=tuple(None for _ in adapters))
    settled, witnessed = [], []
    for adapter, weight in zip(adapters, weights, strict=True):
        accounts = Accounts(adapter, seen, places, weight)
        accounts.settle()
        witnessed.append(None if places.literal else compare_with_peft(accounts, base.directory))
        accounts.demand_targets()
        settled.append(accounts)
    model = None if places.literal else skeleton(base.directory)
    made: Composed = compose(seen, places, settled, model, declared)
    return Ledger(
        made.parts, made.replaced, made.unjudged,
        findings=tuple(finding for accounts in settled for finding in accounts.findings) + tuple(made.findings),
        complete=all(accounts.complete for accounts in settled) and not any(adapter.problems for adapter in adapters),
        tensors=counts, consumed=tuple(accounts.consumed for accounts in settled), peft_modules=tuple(witnessed),
        composed=made.composed, new=made.new, base=made.base, declared=made.declared, notes=notes,
    )  # fmt: skip


def _as_trained(base: Checkpoint, adapters: Sequence[Adapter]) -> tuple[Checkpoint, Names, Declared, tuple[str, ...]]:
    """The base, its names and the declared differences, for the stack of layers that the adapters were trained on."""
    stacks = {_replication(adapter) for adapter in adapters}
    if len(stacks) > 1:
        raise NotInterpretedError("layer_replication differs between the adapters")
    (sources,) = stacks or {None}
    try:
        model = skeleton(base.directory)
    except NotInterpretedError as error:
        config = read_object(base.directory / "config.json") if (base.directory / "config.json").is_file() else {}
        if not config or sources or any(uninterpreted(a.config) or a.config.get("fan_in_fan_out") for a in adapters):
            raise
        return base, LiteralNames(base.tensors), Declared(), (f"{LITERAL}, each matrix as a linear map: {error}",)
    if sources is None:
        return base, Places(model, base.tensors), Declared(), ()
    edits = changes(model.config.to_dict(), sources)
    seen = expanded(base, model, sources)
    reason = f"layer_replication repeats layers: {len(sources)} of them"
    grown = skeleton(base.directory, edits)
    hold_alike(model, grown, sources)
    return seen, Places(grown, seen.tensors), Declared(edits, reasons=(reason,)), ()


def _replication(adapter: Adapter) -> tuple[int, ...] | None:
    try:
        return read_terms(adapter.config).replication
    except Exception:  # said by the accounts
        return None
