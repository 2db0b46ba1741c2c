"""One judgement in progress: what is to be examined, and which check examines it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date
from functools import cached_property, partial
from pathlib import Path

from certify import accept
from certify.accept import AcceptList
from certify.checks.c6_selfcheck import FORMULA, SUBJECTS, TENSORS, formula, power
from certify.checks.c7_side_files import SideFiles
from certify.checks.c8_fidelity import whole_fidelity
from certify.checks.c9_layers import LayerBehaviour
from certify.checks.c10_logits import SUBJECT as PREDICTIONS
from certify.checks.c10_logits import logits
from certify.coverage import unjudged
from certify.evidence import Shard, open_journal, shards
from certify.expect.ledger import CODE as ACCOUNTING
from certify.expect.ledger import Ledger, build_ledger
from certify.expect.loading import ADAPTER_SUBJECT, adapter_loading, loading
from certify.expect.loading import SUBJECT as LOADING
from certify.files import Files, labels
from certify.finding import Finding, Outcome
from certify.inputs.adapter import Adapter, open_adapter
from certify.inputs.checkpoint import Checkpoint, open_checkpoint
from certify.inputs.claim import Claim, located
from certify.inputs.digests import Digests
from certify.inputs.snapshot import Snapshot
from certify.journal import Journal
from certify.quantised import decoded
from certify.question import ACCOUNTS, FILES, LAYERS, LOGITS, SELF_CHECK, Question
from certify.request import Request
from certify.screen import conclude, gathered
from certify.seal import seal
from certify.statement import statement
from certify.tensors import Tensors, places
from certify.verdict import Certificate, decide

RANK = {Outcome.FAILED: 0, Outcome.NOT_INTERPRETED: 1, Outcome.UNDECIDED: 2, Outcome.PASSED: 3}


class Examination:
    """The subjects of one request. Headers are read at once, the architecture when a check first needs it, tensors when they are asked for.

    places    (shard file, tensor name), base index ∪ merged, in the order in which they lie on disk
    report    the directory whose journal keeps evidence between runs; None: nothing is kept
    expected  how many subjects there are

    Raises UsageError for a question that makes no sense. Damaged input never raises: it becomes findings.
    """

    def __init__(self, request: Request, report: Path | None = None) -> None:
        request.refuse_unusable()
        self.request, self.report = request, report
        self.accepted = accept.read(request.accept) if request.accept else AcceptList()
        self.claim = Claim() if request.adapters else located(request.merged)
        paths = request.adapters or self.claim.adapters
        self.folders = labels(request.base, request.merged, paths)
        self.digests, self.snapshot = Digests(), Snapshot(self.folders)
        opened = [open_checkpoint(side, self.digests) for side in (request.base, request.merged)]
        self.base, self.merged, self.quantised = decoded(*opened)
        self.adapters: tuple[Adapter, ...] = tuple(open_adapter(path) for path in paths)
        self.weights = request.weights or (1.0,) * len(self.adapters)
        self.places = places(self.base, self.merged)
        self.files = Files(self.base, self.merged, self.adapters, request.output_dtype)
        self.side_files = SideFiles(self.base, self.merged, paths, request.output_dtype, request.base_digest, lambda: self.ledger.declared)

    @cached_property
    def expected(self) -> int:
        return len(self.places) + sum(1 for ask in (self.of_files, self.of_layers, self.of_logits, self.of_itself) for _ in ask()) + 1

    def questions(self) -> Iterator[Question]:
        """Everything that is asked."""
        for ask in (self.of_files, self.of_tensors, self.of_layers, self.of_logits, self.of_itself):
            yield from ask()

    def of_files(self) -> Iterator[Question]:
        """C1 of what holds weights; C7 of what stands beside them, and of what the loaders say."""
        for name in self.files.subjects:
            yield Question(FILES, name, _one(self.files.examine, name))
        for name in self.side_files.subjects:
            yield Question(FILES, name, _one(self.side_files.examine, name))
        yield Question(FILES, LOADING, lambda: [loading(self.base, self.merged, self.ledger.declared)])
        for number, adapter in enumerate(self.adapters, start=1):
            label = ADAPTER_SUBJECT if len(self.adapters) == 1 else ADAPTER_SUBJECT.replace("adapter", f"adapter {number}")
            yield Question(FILES, label, _one(adapter_loading, self.base, adapter, label))

    def of_tensors(self) -> Iterator[Question]:
        """C4's accounts of the adapter; C2, then C3 or C4, C5 and C8 of every tensor, shard by shard."""
        yield Question(ACCOUNTS, ACCOUNTS, self._accounts)
        for shard, name in self.places:
            yield Question(shard, name, partial(self._tensor, name, shard))

    def of_layers(self) -> Iterator[Question]:
        """C9, where the level asks for it, in the order of the model: one forward answers for all layers."""
        if self.request.reaches("layers"):
            for unit in self.layers.units:
                yield Question(LAYERS, unit, partial(self.layers.examine, unit))

    def of_logits(self) -> Iterator[Question]:
        """C10, where the level asks for it."""
        if self.request.reaches("logits"):
            yield Question(LOGITS, PREDICTIONS, _one(logits, *self._behaving))

    def of_itself(self) -> Iterator[Question]:
        """C6, about the gate and not about the checkpoint."""
        for subject in SUBJECTS:
            yield Question(SELF_CHECK, subject, partial(self._itself, subject))

    def certificate(self, findings: Iterable[Finding], *, run: int, crashed: str | None = None) -> Certificate:
        """The verdict over everything that was found. `run`: subjects really examined; fewer than `expected` is INCOMPLETE."""
        whole, found = run == self.expected and self.request.only is None, [*findings]
        screening = None if self.adapters else conclude(self.base, self.merged, gathered(found))
        made = seal(self.digests, self.snapshot, self.folders, self._rested)
        late = [*made.findings, *self._fidelity(found), *(unjudged((name for _, name in self.places), found) if whole else ())]
        left, accepted, declared = self.accepted.apply([*found, *late], date.today(), whole=whole)
        ordered = tuple(sorted([*left, *declared], key=lambda finding: RANK[finding.outcome]))
        verdict, reason = decide(ordered, accepted, run=run, expected=self.expected, only=self.request.only, crashed=crashed)
        told = statement(self, made, ordered, accepted, screening, verdict, reason, run)
        ends = {id(finding) for finding in late}
        closing = (*(finding for finding in left if id(finding) in ends), *declared)
        return Certificate(verdict, self.request.level, reason, told, ordered, closing)

    @cached_property
    def ledger(self) -> Ledger:
        """What base and adapters demand of each tensor; without adapters nothing is known."""
        return build_ledger(self.base, self.adapters, self.weights) if self.adapters else Ledger()

    @cached_property
    def tensors(self) -> Tensors:
        """The checks of single tensors."""
        return Tensors(self.base, self.merged, self.ledger, self.request, self.claim.reason, self.quantised)

    @cached_property
    def layers(self) -> LayerBehaviour:
        """The check of decoder layers."""
        return LayerBehaviour(*self._behaving, only=self.request.only)

    @cached_property
    def shards(self) -> dict[str, Shard]:
        """What lies in each shard."""
        return shards(self.base, self.merged, self.places)

    @cached_property
    def journal(self) -> Journal | None:
        """Evidence of an earlier run in the report directory."""
        return open_journal(self, self.report) if self.report else None

    @property
    def _rested(self) -> dict[str, set[str]]:
        """The files, by label, without which there is no judgement."""
        sides = ({*self.merged.headers}, {*self.base.headers}, *({*adapter.files} for adapter in self.adapters))
        return dict(zip(self.folders, sides, strict=True))

    def _fidelity(self, found: Sequence[Finding]) -> list[Finding]:
        """C8 of the whole adapter, without the differences that somebody answers for."""
        apart = {finding.subject for finding in found if self.accepted.covering(finding, date.today())}
        kept = [finding for finding in found if finding.subject not in apart]
        added = {*self.ledger.parts, *(name for name, recipe in self.ledger.composed.items() if recipe.regions)}
        return whole_fidelity(kept, len(added - apart), self.request.min_retention)

    @property
    def _behaving(self) -> tuple[Checkpoint, Checkpoint, Ledger, tuple[Adapter, ...], tuple[float, ...], str]:
        return self.ledger.base or self.base, self.merged, self.ledger, self.adapters, self.weights, self.request.criterion

    def _tensor(self, name: str, shard: str) -> list[Finding]:
        """What the journal holds of this shard, found in the very same bytes, is taken from there."""
        known = self.journal.recall(shard, self.shards[shard].tensors) if self.journal else None
        return known[name] if known and name in known else self.tensors.examine(name)

    def _accounts(self) -> list[Finding]:
        """Every adapter tensor consumed, every module that the adapter targets present, every field understood."""
        if not self.adapters:
            return [Finding(ACCOUNTING, ACCOUNTS, Outcome.NOT_INTERPRETED, self.claim.reason)]
        if unsettled := [*self.ledger.findings, *self.tensors.missing()]:
            return unsettled
        if damaged := [f"{adapter.directory.name}: {problem}" for adapter in self.adapters for _, problem in adapter.problems]:
            return [Finding(ACCOUNTING, ACCOUNTS, Outcome.FAILED, "; ".join(damaged))]
        figures = {"tensors": sum(self.ledger.tensors), "consumed": sum(self.ledger.consumed)}
        return [Finding(ACCOUNTING, ACCOUNTS, Outcome.PASSED, "; ".join(self.ledger.notes), figures)]

    def _itself(self, subject: str) -> list[Finding]:
        if subject == FORMULA:
            return [formula()]
        names = sorted(name for name in self.ledger.parts if self.tensors.comparable(name))
        chosen = [names[place] for place in sorted({0, len(names) // 2, len(names) - 1})] if names else []
        base, merged = self.tensors.base.tensors, self.merged.tensors
        cases = [(name, base[name], merged[name], self.ledger.parts[name]) for name in chosen[:TENSORS]]
        return [power(cases, self.request.criterion)]


def _one(check: Callable[..., Finding], *given: object) -> Callable[[], list[Finding]]:
    """A check that says one thing, as a question asks it."""
    return lambda: [check(*given)]
