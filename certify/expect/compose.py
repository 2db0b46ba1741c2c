"""All adapters' drafts together: which tensors they add to, replace or remake, which part ways, and what is declared thereby."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from certify.errors import DamagedError, NotInterpretedError
from certify.expect.accounts import CODE, Accounts
from certify.expect.declared import Changes, Declared
from certify.expect.draft import Draft
from certify.expect.expectation import Expectation, Part
from certify.expect.heads import task_class
from certify.expect.places import Names
from certify.expect.ties import refuse_many, ties, untied
from certify.finding import Finding, Outcome
from certify.inputs.adapter import AdapterTensor
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.stored import Stored


@dataclass
class Composed:
    """The ledger's entries; see `certify.expect.ledger`."""

    declared: Declared
    parts: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    replaced: dict[str, AdapterTensor] = field(default_factory=dict)
    composed: dict[str, Expectation] = field(default_factory=dict)
    copied: dict[str, Stored] = field(default_factory=dict)
    new: dict[str, AdapterTensor] = field(default_factory=dict)
    unjudged: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def declare(self, reason: str, changes: Changes) -> None:
        reasons = (*self.declared.reasons, reason)
        self.declared = replace(self.declared, config=self.declared.config | changes, reasons=reasons)


def compose(base: Checkpoint, places: Names, settled: Sequence[Accounts], model: Any, declared: Declared) -> Composed:
    """model: the skeleton of the base's architecture; None where it is unknown."""
    made = Composed(declared)
    drafts = _together(settled, made)
    starts = {key: base.tensors[key] for key in drafts if key in base.tensors}
    _part(base, places, drafts, starts, made)
    for key, draft in drafts.items():
        _enter(key, draft, starts, base, places, made)
    _heads(settled, model, made)
    return made


def _together(settled: Sequence[Accounts], made: Composed) -> dict[str, Draft]:
    drafts: dict[str, Draft] = {}
    for accounts in settled:
        made.unjudged |= accounts.unjudged
        for key, draft in accounts.drafts.items():
            if key not in drafts:
                drafts[key] = draft
            elif problem := drafts[key].joined(draft):
                made.unjudged[key] = problem
    return drafts


def _part(base: Checkpoint, places: Names, drafts: dict[str, Draft], starts: dict[str, Stored], made: Composed) -> None:
    """Tied weights that were changed differently."""
    for key, tied in ties(places).items():
        apart = []
        for tie in tied:
            try:
                if not untied(tie, drafts):
                    continue
                apart.append(tie)
                refuse_many(key, tied)
            except (DamagedError, NotInterpretedError) as error:
                made.unjudged[key] = str(error)
                made.findings.append(Finding(CODE, key, Outcome.NOT_INTERPRETED, str(error)))
                drafts.pop(tie.alias, None)
                break
            starts[tie.alias] = base.tensors[key]
            if tie.alias not in drafts and tie.alone:
                made.copied[tie.alias] = base.tensors[key]
        if apart and key not in made.unjudged:
            made.declare(f"{key} and {apart[0].alias} were trained apart", {"tie_word_embeddings": False})
    for key in [key for key in drafts if key not in base.tensors and key not in starts]:
        made.findings.append(Finding(CODE, key, Outcome.NOT_INTERPRETED, "tied to a tensor that the base has not"))
        del drafts[key]


def _enter(key: str, draft: Draft, starts: dict[str, Stored], base: Checkpoint, places: Names, made: Composed) -> None:
    start = starts.get(key) or base.tensors[key]
    if not draft.parts and not draft.replacing:
        return
    if problem := draft.problem():
        made.unjudged[key] = problem
        return
    if draft.start is not None and draft.start.shape != start.shape:
        _resized(key, draft.start.shape[0], places, made)
    shape = start.shape
    if draft.plain and key in base.tensors and len(shape) == 2:
        made.parts[key] = tuple(part for _, part in draft.parts)
    elif draft.start and not draft.parts and not draft.tokens and key in base.tensors and draft.start.shape == shape:
        made.replaced[key] = draft.start
    else:
        made.composed[key] = draft.expectation(start)


def _resized(key: str, rows: int, places: Names, made: Composed) -> None:
    place = places.all.get(key)
    if place is None or place.parameter == places.embedding or places.is_head(place.parameter):
        made.declare(f"{key} has {rows} rows", {"vocab_size": rows})


def _heads(settled: Sequence[Accounts], model: Any, made: Composed) -> None:
    """Heads that the base has not."""
    for accounts in settled:
        if not accounts.new or accounts.terms is None:
            continue
        first = min(accounts.new)
        try:
            if model is None:
                raise NotInterpretedError(f"{first} is not in the base, whose architecture is unknown")
            if made.new or accounts.weight != 1.0:
                raise NotInterpretedError(f"{first}: a head of one adapter among several, or with a weight, is not interpreted")
            name, labels = task_class(model, accounts.terms.task, accounts.new)
        except DamagedError as error:
            accounts.fail(first, str(error))
            continue
        except NotInterpretedError as error:
            accounts.note(first, str(error))
            continue
        made.new |= accounts.new
        made.declare(f"{first} is a head that the base has not", {"architectures": [name]})
        made.declared = replace(made.declared, labels=labels)
