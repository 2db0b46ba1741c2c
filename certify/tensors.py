"""One tensor's way through the checks: C2, then C3 if no adapter touches it, C4, C5 and C8 if one does, in one reading of its bytes."""

from functools import cached_property, partial

from certify.checks.c2_completeness import completeness, expected_dtype, main_dtype
from certify.checks.c3_untouched import untouched
from certify.checks.c4_merged import Listener, merged_tensor, replaced_tensor
from certify.checks.c5_modules import Answers, module_answers
from certify.checks.c8_fidelity import tensor_fidelity
from certify.errors import DamagedError
from certify.expect.ledger import CODE as ACCOUNTING
from certify.expect.ledger import Ledger
from certify.finding import Finding, Outcome
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.dtypes import FLOATS
from certify.relatives import Relatives
from certify.request import Request
from certify.screen import noted


class Tensors:
    """The checks of one judgement's tensors; `unknown` says why the ledger does not explain everything, if it does not."""

    def __init__(self, base: Checkpoint, merged: Checkpoint, ledger: Ledger, request: Request, unknown: str) -> None:
        self.base, self.merged, self.ledger, self.request, self._unknown = base, merged, ledger, request, unknown
        self.main_dtype = main_dtype(base)

    def examine(self, name: str) -> list[Finding]:
        """Every check's finding about one tensor; C2 alone where the two sides cannot be compared."""
        base = self.base.tensors.get(name)
        expected = expected_dtype(base.dtype, self.main_dtype, self.request.output_dtype) if base else None
        found = completeness(name, self.base, self.merged, expected)
        if found.outcome is not Outcome.PASSED:
            return [found]
        answers = self._answers(name)
        value = self._value(name, answers.take if answers else None)
        behaviour = answers.finding(name) if answers and not value.figures.get("unreadable") else None
        fidelity = tensor_fidelity(value, self.request.criterion)
        return [finding for finding in (found, value, behaviour, fidelity) if finding]

    def comparable(self, name: str) -> bool:
        """Whether low-rank deltas, and nothing else, are added to a tensor that both sides hold as floats of one shape."""
        base, merged, ledger = self.base.tensors.get(name), self.merged.tensors.get(name), self.ledger
        known = name in ledger.parts and name not in ledger.unjudged and name not in ledger.replaced
        return known and base is not None and merged is not None and base.shape == merged.shape and merged.dtype in FLOATS

    def _value(self, name: str, listener: Listener | None) -> Finding:
        base, merged, ledger = self.base.tensors[name], self.merged.tensors[name], self.ledger
        if name in ledger.unjudged:
            return Finding(ACCOUNTING, name, Outcome.NOT_INTERPRETED, ledger.unjudged[name])
        if name in ledger.replaced:
            return replaced_tensor(name, merged, ledger.replaced[name])
        if name in ledger.parts:
            if merged.dtype not in FLOATS:
                return Finding(ACCOUNTING, name, Outcome.NOT_INTERPRETED, f"stored as {merged.dtype}, which this version does not decode")
            relatives = partial(self._relatives.of, name)
            return merged_tensor(name, base, merged, ledger.parts[name], self.request.criterion, relatives, listener)
        found = untouched(name, base, merged)
        if not ledger.tensors:  # without an adapter nobody knows what should have changed: look at what did
            found = noted(found, base, merged)
        if found.outcome is Outcome.FAILED and not ledger.complete and "differing" in found.figures:
            why = self._unknown or "not everything about the adapter is interpreted"
            return Finding(found.code, name, Outcome.NOT_INTERPRETED, f"differs from the base, and cannot be judged: {why}", found.figures)
        return found

    def _answers(self, name: str) -> Answers | None:
        """C5 of a touched tensor, where the level asks for it; it listens while C4 reads."""
        if not self.request.reaches("modules") or not self.comparable(name):
            return None
        try:
            return module_answers(self.ledger.parts[name], self.request.criterion)
        except DamagedError:  # C4 says so
            return None

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
