"""One judgement in progress: what is to be examined, and the checks that each subject passes through."""

from collections.abc import Iterable
from functools import cached_property, partial

from certify.checks import c1_files
from certify.checks.c2_completeness import completeness, expected_dtype, main_dtype
from certify.checks.c3_untouched import untouched
from certify.checks.c4_merged import merged_tensor, replaced_tensor
from certify.checks.c5_modules import module_behaviour
from certify.checks.c6_selfcheck import FORMULA, SUBJECTS, TENSORS, formula, power
from certify.checks.c7_side_files import DIGEST, SideFiles
from certify.checks.c8_fidelity import tensor_fidelity, whole_fidelity
from certify.errors import UsageError
from certify.expect.ledger import CODE as ACCOUNTING
from certify.expect.ledger import Ledger, build_ledger
from certify.finding import Finding, Outcome
from certify.inputs.adapter import Adapter, open_adapter
from certify.inputs.checkpoint import INDEX, Checkpoint, open_checkpoint
from certify.inputs.claim import Claim, located
from certify.inputs.dtypes import FLOATS
from certify.relatives import Relatives
from certify.request import CRITERIA, LEVELS, OUTPUT_DTYPES, REACHED, Request
from certify.statement import statement
from certify.verdict import Certificate, decide

BASE, ADAPTER = "base: ", "adapter: "  # subjects of C1 that are no files of the merged directory
ACCOUNTS = "adapter"  # the subject of the accounting


class Examination:
    """The subjects of one request, and what to do with each. Headers are read at once, the architecture when a tensor first needs it.

    files     subjects of C1: the merged directory's weight files, index and strays, then the base's and the adapters' files; sorted
    side_files  subjects of C7: what stands beside the weights of base or merged; sorted
    tensors   (shard file, tensor name), base index ∪ merged, in the order in which they lie on disk
    expected  how many subjects there are: files, side files, tensors, the adapter's accounts, and the gate's checks of itself

    Raises UsageError for a missing directory, unequal numbers of weights and adapters, or an option that is not built yet. Damaged
    input never raises: it becomes findings.
    """

    self_checks = SUBJECTS

    def __init__(self, request: Request) -> None:
        _refuse_unusable(request)
        self.request = request
        self.base: Checkpoint = open_checkpoint(request.base)
        self.merged: Checkpoint = open_checkpoint(request.merged)
        self.claim = Claim() if request.adapters else located(request.merged)
        self.adapters: tuple[Adapter, ...] = tuple(open_adapter(path) for path in request.adapters or self.claim.adapters)
        self.weights = request.weights or (1.0,) * len(self.adapters)
        self.main_dtype = main_dtype(self.base)
        self.files = tuple(sorted({*self._merged_files(), *self._inputs}))
        names = {*self.base.weight_map, *self.base.tensors, *self.merged.weight_map, *self.merged.tensors}
        self.tensors = tuple((place[0], place[2]) for place in sorted(self._place(name) for name in names))
        paths = [adapter.directory for adapter in self.adapters]
        self._beside = SideFiles(self.base, self.merged, paths, request.output_dtype, request.base_digest)
        self.side_files = self._beside.subjects
        self.expected = len(self.files) + len(self.side_files) + len(self.tensors) + 1 + len(self.self_checks)

    def examine_file(self, name: str) -> list[Finding]:
        """C1 of one subject of `files`."""
        if name in self._inputs:
            return [c1_files.damaged_input(name, self._inputs[name])]
        if name == INDEX:
            return [c1_files.index_file(name, self.merged)]
        if name in self.merged.stray:
            return [c1_files.stray_file(name, self.merged)]
        return [c1_files.weight_file(name, name, self.merged)]

    def examine_side_file(self, name: str) -> list[Finding]:
        """C7 of one subject of `side_files`."""
        return [self._beside.examine(name)]

    def examine_tensor(self, name: str) -> list[Finding]:
        """C2, then C4 if an adapter touches the tensor and C3 if none does; C2 alone where the two sides cannot be compared."""
        base = self.base.tensors.get(name)
        expected = expected_dtype(base.dtype, self.main_dtype, self.request.output_dtype) if base else None
        found = completeness(name, self.base, self.merged, expected)
        if found.outcome is not Outcome.PASSED:
            return [found]
        value = self._value(name)
        fidelity = tensor_fidelity(value, self.request.criterion)
        behaviour = self._behaviour(name, value)
        return [finding for finding in (found, value, behaviour, fidelity) if finding]

    def examine_adapter(self) -> list[Finding]:
        """C4's accounting: every adapter tensor consumed, every module that the adapter targets present, every field understood."""
        if not self.adapters:
            return [Finding(ACCOUNTING, ACCOUNTS, Outcome.NOT_INTERPRETED, self.claim.reason)]
        if self.ledger.findings:
            return list(self.ledger.findings)
        if damaged := [f"{adapter.directory.name}: {problem}" for adapter in self.adapters for _, problem in adapter.problems]:
            return [Finding(ACCOUNTING, ACCOUNTS, Outcome.FAILED, "; ".join(damaged))]
        figures = {"tensors": sum(self.ledger.tensors), "consumed": sum(self.ledger.consumed)}
        return [Finding(ACCOUNTING, ACCOUNTS, Outcome.PASSED, figures=figures)]

    def examine_itself(self, subject: str) -> list[Finding]:
        """C6: one subject of `self_checks`, about the gate and not about the checkpoint."""
        if subject == FORMULA:
            return [formula()]
        names = sorted(name for name in self.ledger.parts if self._comparable(name))
        chosen = [names[place] for place in sorted({0, len(names) // 2, len(names) - 1})] if names else []
        cases = [(name, self.base.tensors[name], self.merged.tensors[name].dtype, self.ledger.parts[name]) for name in chosen[:TENSORS]]
        return [power(cases, self.request.criterion)]

    def certificate(self, findings: Iterable[Finding], *, run: int, crashed: str | None = None) -> Certificate:
        """The verdict over everything that was found. `run`: subjects really examined; fewer than `expected` is INCOMPLETE."""
        rank = {Outcome.FAILED: 0, Outcome.NOT_INTERPRETED: 1, Outcome.UNDECIDED: 2, Outcome.PASSED: 3}
        found = [*findings]
        found += whole_fidelity(found, len(self.ledger.parts), self.request.min_retention)
        ordered = tuple(sorted(found, key=lambda finding: rank[finding.outcome]))
        verdict, reason = decide(ordered, run=run, expected=self.expected, only=self.request.only, crashed=crashed)
        return Certificate(verdict, self.request.level, reason, statement(self, ordered, verdict, reason, run), ordered)

    @cached_property
    def ledger(self) -> Ledger:
        """What base and adapters demand of each tensor; without adapters nothing is known."""
        return build_ledger(self.base, self.adapters, self.weights) if self.adapters else Ledger()

    def _value(self, name: str) -> Finding:
        base, merged, ledger = self.base.tensors[name], self.merged.tensors[name], self.ledger
        if name in ledger.unjudged:
            return Finding(ACCOUNTING, name, Outcome.NOT_INTERPRETED, ledger.unjudged[name])
        if name in ledger.replaced:
            return replaced_tensor(name, merged, ledger.replaced[name])
        if name in ledger.parts:
            if merged.dtype not in FLOATS:
                return Finding(ACCOUNTING, name, Outcome.NOT_INTERPRETED, f"stored as {merged.dtype}, which this version does not decode")
            return merged_tensor(name, base, merged, ledger.parts[name], self.request.criterion, partial(self._relatives.of, name))
        found = untouched(name, base, merged)
        if found.outcome is Outcome.FAILED and not ledger.complete and "differing" in found.figures:
            why = self.claim.reason or "not everything about the adapter is interpreted"
            return Finding(found.code, name, Outcome.NOT_INTERPRETED, f"differs from the base, and cannot be judged: {why}", found.figures)
        return found

    def _behaviour(self, name: str, value: Finding) -> Finding | None:
        """C5 of a touched tensor, where the level asks for it and C4 could read the numbers."""
        if self.request.level == "weights" or not self._comparable(name) or value.figures.get("unreadable"):
            return None
        return module_behaviour(name, self.base.tensors[name], self.merged.tensors[name], self.ledger.parts[name], self.request.criterion)

    def _comparable(self, name: str) -> bool:
        """A tensor that low-rank deltas, and nothing else, are added to, and that both sides hold as floats of one shape."""
        base, merged, ledger = self.base.tensors.get(name), self.merged.tensors.get(name), self.ledger
        known = name in ledger.parts and name not in ledger.unjudged and name not in ledger.replaced
        return known and base is not None and merged is not None and base.shape == merged.shape and merged.dtype in FLOATS

    @cached_property
    def _relatives(self) -> Relatives:
        return Relatives(self.ledger, self.base)

    def _merged_files(self) -> set[str]:
        index = {INDEX} if self.merged.sharded else set()
        return {*self.merged.weight_files, *self.merged.stray, *index}

    @cached_property
    def _inputs(self) -> dict[str, list[str]]:
        """Subjects of base and adapters, each with its problems; every file that the judgement rests on is listed, sound or not."""
        problems: dict[str, list[str]] = {}
        if self.base.sharded:
            problems[BASE + INDEX] = list(self.base.index_problems)
        for file in self.base.weight_files:
            absent = ["the index names this file, but it does not exist"] if file in self.base.absent else []
            problems[BASE + file] = absent + list(self.base.headers[file].problems if file in self.base.headers else ())
        for number, adapter in enumerate(self.adapters, start=1):
            label = ADAPTER if len(self.adapters) == 1 else f"adapter {number}: "
            problems |= {label + file: [what for where, what in adapter.problems if where == file] for file in adapter.files}
        return problems

    def _place(self, name: str) -> tuple[str, int, str]:
        side = self.merged if name in self.merged.tensors else self.base
        start = side.tensors[name].entry.start if name in side.tensors else -1
        return side.file_of(name) or self.merged.file_of(name), start, name


def _refuse_unusable(request: Request) -> None:
    named = [("--base", request.base), ("--merged", request.merged), *(("--adapter", path) for path in request.adapters)]
    for option, path in named:
        if not path.is_dir():
            raise UsageError(f"{option} {path}: no such directory")
    if request.weights and len(request.weights) != len(request.adapters):
        raise UsageError(f"{len(request.weights)} --weight for {len(request.adapters)} --adapter; give one for each, or none")
    for option, value, known in (
        ("--criterion", request.criterion, CRITERIA),
        ("--output-dtype", request.output_dtype, OUTPUT_DTYPES),
        ("--level", request.level, LEVELS),
    ):
        if value not in known:
            raise UsageError(f"{option} {value}: known are {', '.join(known)}")
    if not 0 <= request.min_retention <= 1:
        raise UsageError(f"--min-retention {request.min_retention}: a share between 0 and 1")
    if request.base_digest is not None and not DIGEST.fullmatch(request.base_digest):
        raise UsageError(f"--base-digest {request.base_digest}: 64 hexadecimal digits, the sha256 of a folder")
    if request.level not in REACHED:
        raise UsageError(f"--level {request.level}: not built yet; this version reaches {' and '.join(REACHED)}")
