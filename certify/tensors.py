"""One tensor's way through the checks: C2, then C3 if no adapter touches it, C4, C5 and C8 if one does, in one reading of its bytes."""

from functools import cached_property, partial

from certify.checks.c2_completeness import Demand, completeness, expected_dtype, main_dtype
from certify.checks.c3_untouched import untouched
from certify.checks.c4_merged import Listener, composed_tensor, merged_tensor, replaced_tensor
from certify.checks.c4_scales import scale_tensor
from certify.checks.c5_composed import ComposedAnswers, composed_answers
from certify.checks.c5_modules import Answers, module_answers
from certify.checks.c8_fidelity import tensor_fidelity
from certify.encodings.coded import Coded, companions, owners
from certify.errors import DamagedError
from certify.expect.expectation import Expectation, Region
from certify.expect.ledger import CODE as ACCOUNTING
from certify.expect.ledger import Ledger
from certify.finding import Finding, Outcome
from certify.inputs.checkpoint import Checkpoint
from certify.quantised import Quantised
from certify.relatives import Relatives
from certify.request import Request
from certify.screen import noted


class Tensors:
    """The checks of one judgement's tensors; `unknown` says why the ledger does not explain everything, if it does not.

    base: as the adapters saw it: with their stack of layers      undone: what the declared output must not hold any more: scales
    """

    def __init__(self, base: Checkpoint, merged: Checkpoint, ledger: Ledger, request: Request, unknown: str, quantised: Quantised) -> None:
        self.merged, self.ledger, self.request, self._unknown = merged, ledger, request, unknown
        self.base, self._given = ledger.base or base, base
        self.main_dtype, self._quantised = main_dtype(base), quantised
        self._owners = owners(self.base.tensors)  # scale → weight
        self.undone = companions(self.base.tensors) if request.output_dtype != "same" else set()

    def examine(self, name: str) -> list[Finding]:
        """Every check's finding about one tensor; C2 alone where the two sides cannot be compared."""
        demand, gone = self._demand(name), self._gone(name)
        found = completeness(name, self.base, self.merged, demand, gone=gone)
        if found.outcome is not Outcome.PASSED or gone:
            return [self._told(found)]
        if name in self.ledger.composed and name not in self.ledger.unjudged:
            return [found, *self._composed(name)]
        answers = self._answers(name)
        value = self._value(name, answers.take if answers else None)
        behaviour = answers.finding(name) if answers and not value.figures.get("unreadable") else None
        fidelity = tensor_fidelity(value, self.request.criterion)
        return [finding for finding in (found, self._told(value), behaviour, fidelity) if finding]

    def _told(self, found: Finding) -> Finding:
        return self._quantised.told(found, self.merged, self._touched, self.request.output_dtype)

    def _gone(self, name: str) -> str:
        """Why a tensor of the base must not be there any more."""
        if name in self._given.tensors and name not in self.base.tensors:
            return "belongs to a layer that the adapter leaves out"
        return f"stands beside weights that are declared as {self.request.output_dtype}: a scale of nothing" if name in self.undone else ""

    def missing(self) -> list[Finding]:
        """C2 of what the adapters add and nobody has: no file names it, so that no other question is about it."""
        names = {*self.ledger.new, *self.base.tensors} - {*self.merged.tensors, *self.merged.weight_map} - self.undone
        unheard = sorted(names - {*self._given.tensors, *self._given.weight_map})
        return [completeness(name, self.base, self.merged, self._demand(name)) for name in unheard]

    def comparable(self, name: str) -> bool:
        """Whether low-rank deltas, and nothing else, are added to a tensor that both sides hold as floats of one shape."""
        base, merged, ledger = self.base.tensors.get(name), self.merged.tensors.get(name), self.ledger
        known = name in ledger.parts and name not in ledger.unjudged and name not in ledger.replaced
        return known and base is not None and merged is not None and base.shape == merged.shape and merged.numbers is not None

    def _demand(self, name: str) -> Demand | None:
        """What C2 asks of a tensor; None where nobody expects it, or the base cannot be read."""
        ledger, base = self.ledger, self.base.tensors.get(name)
        composed = ledger.composed.get(name)
        begun = composed.start if composed else None
        source = base or ledger.new.get(name) or begun
        if source is None:
            return None
        shape = composed.shape if composed else source.shape
        stored = {base.dtype} if base else {source.dtype, *filter(None, [self.main_dtype])}  # of a new tensor: the adapter's, or the base's
        decoded, output = base is not None and base.decoded, self.request.output_dtype
        return Demand(shape, tuple(sorted(expected_dtype(one, self.main_dtype, output, decoded=decoded) for one in stored)))

    def _value(self, name: str, listener: Listener | None) -> Finding:
        merged, ledger = self.merged.tensors[name], self.ledger
        if name in ledger.unjudged:
            return Finding(ACCOUNTING, name, Outcome.NOT_INTERPRETED, ledger.unjudged[name])
        if merged.numbers is None and name in {*ledger.parts, *ledger.replaced, *ledger.new}:
            return Finding(ACCOUNTING, name, Outcome.NOT_INTERPRETED, f"stored as {merged.dtype}, which this version does not decode")
        if name in ledger.replaced or name in ledger.new:
            return replaced_tensor(name, merged, ledger.replaced.get(name) or ledger.new[name])
        base = self.base.tensors[name]
        if name in ledger.parts:
            relatives = partial(self._relatives.of, name)
            return merged_tensor(name, base, merged, ledger.parts[name], self.request.criterion, relatives, listener)
        found = untouched(name, base, merged)
        if found.outcome is Outcome.FAILED and not found.figures.get("unreadable") and (scales := self._scales(name)):
            return scales
        if not ledger.tensors:  # without an adapter nobody knows what should have changed: look at what did
            found = noted(found, base, merged)
        if found.outcome is Outcome.FAILED and not ledger.complete and "differing" in found.figures:
            why = self._unknown or "not everything about the adapter is interpreted"
            return Finding(found.code, name, Outcome.NOT_INTERPRETED, f"differs from the base, and cannot be judged: {why}", found.figures)
        return found

    def _scales(self, name: str) -> Finding | None:
        """C4 of the scales of a touched weight, where they are not the base's."""
        owner, ledger = self._owners.get(name, ""), self.ledger
        if owner in ledger.unjudged:
            return Finding(ACCOUNTING, name, Outcome.NOT_INTERPRETED, f"beside {owner}: {ledger.unjudged[owner]}")
        base, merged = self.base.tensors.get(owner), self.merged.tensors.get(owner)
        if owner not in ledger.touched or not isinstance(base, Coded) or not isinstance(merged, Coded):
            return None
        whole = Region(0, base.entry.elements // base.shape[-1], ledger.parts.get(owner, ()))
        plain = Expectation(ledger.replaced.get(owner, base), base.shape[-1], (whole,) if whole.parts else ())
        return scale_tensor(name, ledger.composed.get(owner, plain), base, merged, self.request.criterion)

    def _composed(self, name: str) -> list[Finding]:
        """C4, C5 and C8 of a tensor with a recipe of its own."""
        merged, expectation = self.merged.tensors[name], self.ledger.composed[name]
        if merged.numbers is None:
            told = f"stored as {merged.dtype}, which this version does not decode"
            return [Finding(ACCOUNTING, name, Outcome.NOT_INTERPRETED, told)]
        answers = self._listening(expectation)
        value = composed_tensor(name, expectation, merged, self.request.criterion, answers.take if answers else None)
        behaviour = answers.finding(name) if answers and not value.figures.get("unreadable") else None
        fidelity = tensor_fidelity(value, self.request.criterion) if expectation.regions else None
        return [finding for finding in (value, behaviour, fidelity) if finding]

    def _listening(self, expectation: Expectation) -> ComposedAnswers | None:
        """C5 of a recipe, where the level asks for it."""
        try:
            return composed_answers(expectation, self.request.criterion) if self.request.reaches("modules") else None
        except DamagedError:  # C4 says so
            return None

    def _answers(self, name: str) -> Answers | None:
        """C5 of a touched tensor, where the level asks for it; it listens while C4 reads."""
        if not self.request.reaches("modules") or not self.comparable(name):
            return None
        try:
            return module_answers(self.ledger.parts[name], self.request.criterion)
        except DamagedError:  # C4 says so
            return None

    @cached_property
    def _touched(self) -> set[str]:
        """Whatever an adapter does something to, or may do."""
        return self.ledger.touched | self.ledger.unjudged.keys()

    @cached_property
    def _relatives(self) -> Relatives:
        return Relatives(self.ledger, self.base)


def places(base: Checkpoint, merged: Checkpoint) -> tuple[tuple[str, str], ...]:
    """(shard file, tensor name), base index ∪ merged, in the order in which they lie on disk."""

    def place(name: str) -> tuple[str, int, str]:
        side = merged if name in merged.tensors else base
        start = side.tensors[name].entry.start if name in side.tensors else -1
        return side.file_of(name) or merged.file_of(name), start, name

    names = {*base.weight_map, *base.tensors, *merged.weight_map, *merged.tensors}
    return tuple((shard, name) for shard, _, name in sorted(map(place, names)))
