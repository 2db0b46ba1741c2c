"""All adapters' drafts together: which tensors they add to, replace or remake, which part ways, and what is declared thereby."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from certify.errors import DamagedError, NotInterpretedError
from certify.expect.accounts import CODE, Accounts
from certify.expect.declared import Changes, Declared
from certify.expect.draft import Draft
from certify.expect.expectation import Expectation, Part
from certify.expect.heads import lost_head, task_class
from certify.expect.place import Names
from certify.expect.ties import Tie, refuse_many, ties, untied
from certify.finding import Finding, Outcome
from certify.inputs.adapter import CONFIG, AdapterTensor
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.stored import Stored


@dataclass
class Composed:
    """The ledger's entries; see `certify.expect.ledger`. base grows: by a head that parts from its embedding, by rows of the vocabulary."""

    base: Checkpoint
    declared: Declared
    parts: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    replaced: dict[str, AdapterTensor] = field(default_factory=dict)
    composed: dict[str, Expectation] = field(default_factory=dict)
    new: dict[str, AdapterTensor] = field(default_factory=dict)
    unjudged: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def see(self, key: str, stored: Stored) -> None:
        """From now on the base holds this."""
        self.base = replace(self.base, tensors=self.base.tensors | {key: stored})

    def declare(self, reason: str, changes: Changes) -> None:
        reasons = (*self.declared.reasons, reason)
        self.declared = replace(self.declared, config=self.declared.config | changes, reasons=reasons)


def compose(base: Checkpoint, places: Names, settled: Sequence[Accounts], model: Any, declared: Declared) -> Composed:
    """base: with the layers that the adapters were trained on. model: the skeleton of its architecture; None: unknown."""
    made = Composed(base, declared)
    drafts = _together(settled, made)
    for key, tied in ties(places).items():
        _part(key, tied, drafts, made)
    for key, draft in drafts.items():
        _enter(key, draft, places, made)
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


def _part(key: str, tied: list[Tie], drafts: dict[str, Draft], made: Composed) -> None:
    """Tied weights that were changed differently: from now on each is a tensor of its own."""
    try:
        apart = [tie for tie in tied if untied(tie, drafts)]
        if apart:
            refuse_many(key, tied)
    except (DamagedError, NotInterpretedError) as error:
        made.unjudged[key] = str(error)
        made.findings.append(Finding(CODE, key, Outcome.NOT_INTERPRETED, str(error)))
        for tie in tied:
            drafts.pop(tie.alias, None)
        return
    for tie in apart:
        if tie.alone:
            made.see(tie.alias, made.base.tensors[key])
        made.declare(f"{key} and {tie.alias} were trained apart", {"tie_word_embeddings": False})


def _enter(key: str, draft: Draft, places: Names, made: Composed) -> None:
    """One tensor's entry."""
    if key not in made.base.tensors:
        made.findings.append(Finding(CODE, key, Outcome.NOT_INTERPRETED, "tied to a tensor that the base has not"))
        return
    if problem := draft.problem():
        made.unjudged[key] = problem
        return
    if draft.start is not None and draft.start.shape != made.base.tensors[key].shape:
        _resized(key, draft, places, made)
    start = made.base.tensors[key]
    if draft.convolution and start.decoded:
        made.unjudged[key] = "a quantised convolution is not interpreted"
    elif draft.tokens and max(draft.tokens) >= (draft.start or start).shape[0]:
        made.findings.append(Finding(CODE, key, Outcome.FAILED, f"row {max(draft.tokens)} is replaced, beyond its {start.shape[0]} rows"))
    elif draft.plain and draft.parts and len(start.shape) == 2:
        made.parts[key] = tuple(part for _, part in draft.parts)
    elif draft.start and not draft.parts and not draft.tokens and draft.start.shape == start.shape:
        made.replaced[key] = draft.start
    elif draft.parts or draft.replacing:
        made.composed[key] = draft.expectation(start)


def _resized(key: str, draft: Draft, places: Names, made: Composed) -> None:
    """The adapter's copy of a grown vocabulary takes the place of the base's table."""
    assert draft.start is not None
    place, rows = places.all.get(key), draft.start.shape[0]
    if place is None or place.parameter == places.embedding or places.is_head(place.parameter):
        made.declare(f"{key} has {rows} rows", {"vocab_size": rows})
    if isinstance(draft.start.source, Stored) and draft.snapshot:
        made.see(key, draft.start.source)
        draft.start, draft.snapshot = None, False


def _heads(settled: Sequence[Accounts], model: Any, made: Composed) -> None:
    """Heads that the base has not."""
    for accounts in settled:
        if accounts.terms is not None and not accounts.new and model is not None and (lost := lost_head(model, accounts.terms.task)):
            accounts.note(CONFIG, f"the adapter was trained for {accounts.terms.task}, and neither it nor the base holds {lost}")
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
        for key, tensor in accounts.new.items():
            if isinstance(tensor.source, Stored):
                made.see(key, tensor.source)
        made.declare(f"{first} is a head that the base has not", {"architectures": [name]})
        made.declared = replace(made.declared, labels=labels)
