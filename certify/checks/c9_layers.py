"""C9: each decoder layer answers as base + unmerged adapter does, up to the declared rounding. See `certify.layers.tolerance`.

The model's own forward runs once; every unit (embedding, layer, norm, head) gets what the unmerged model gives it, in all versions:

u  base + PEFT's unmerged layers      b  the base      x  W + Δ in float32      r  W + Δ, rounded once      m  the merged checkpoint

x ≡ u shows that the expectation is the trained behaviour; m ≡ r shows that the checkpoint holds that expectation, rounded. The distance
of m and u is reported beside that of b and u: it is mostly the noise of storage, and blind below ‖Δ‖/‖W‖ ≈ 1e-2. Experts are asked one by
one, and what a router says is judged like any other answer: a token that goes elsewhere although its scores are right stood on a near tie.

Decidable only if each adapted tensor, left at the base's value alone, would fail; otherwise `undecided`: C4 decides.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from certify.errors import DamagedError, NotInterpretedError
from certify.expect.ledger import Ledger
from certify.finding import Figure, Finding, Outcome
from certify.inputs.adapter import Adapter
from certify.inputs.checkpoint import Checkpoint
from certify.layers.answers import OUTPUT
from certify.layers.forward import Forward, StoppedError
from certify.layers.needs import Needs
from certify.layers.telling import SHOWN, broken_link, figures_of, rerouted, tensors_of
from certify.layers.trial import Trial, touched, untouched
from certify.layers.unit import Call, Unit
from certify.layers.weights import Version

CODE = "C9"
TITLE = "decoder layers answer as base + unmerged adapter"
WHOLE = "layers"  # the subject where there are no units to speak of
OUTSIDE = "adapted tensors outside every layer"  # the subject that names what no forward reaches


class LayerBehaviour:
    """C9 of one judgement. Headers only until `announcement` or `examine` is asked.

    units         subjects: module paths, and one more where adapted tensors lie in no module
    only          pattern of the units that will be asked about: the forward ends with the last of them
    announcement  what the forward will need
    peak          most numbers read from disk that were alive at once, after the forward
    """

    def __init__(
        self, base: Checkpoint, merged: Checkpoint, ledger: Ledger, adapters: Sequence[Adapter], weights: Sequence[float], criterion: str,
        only: str | None = None,
    ) -> None:  # fmt: skip
        self._only = only
        self._found: dict[str, Finding] = {}
        self._ran = False
        self._stopped: StoppedError | None = None
        self.forward: Forward | None = None
        self.outside: tuple[str, ...] = ()
        try:
            if not adapters:
                raise NotInterpretedError("without an adapter nobody knows what the layers should answer")
            self.forward = Forward(base, merged, ledger, adapters, weights, criterion)
        except (NotInterpretedError, ImportError) as error:
            self.units: tuple[str, ...] = (WHOLE,)
            self._found[WHOLE] = Finding(CODE, WHOLE, Outcome.NOT_INTERPRETED, f"no layer can be run: {error}")
            return
        held = {key for unit in self.forward.units.values() for key in unit.keys} | self.forward.holders_keys
        self.outside = tuple(sorted(({*ledger.unjudged} | ledger.touched) - held))
        self.units = (*self.forward.units, *((OUTSIDE,) if self.outside else ()))

    @property
    def announcement(self) -> str:
        """The memory that the forward will need, and what there is."""
        return Needs.of(self.forward).sentence() if self.forward else "no layer can be run"

    @property
    def peak(self) -> int:
        return self.forward.weights.meter.peak if self.forward else 0

    @property
    def largest_layer(self) -> int:
        """Numbers in the largest unit: what a gate that loads whole layers would hold."""
        tensors = self.forward.weights.base.tensors if self.forward else {}
        return max((sum(tensors[key].entry.elements for key in unit.keys) for unit in self._units()), default=0)

    def _units(self) -> list[Unit]:
        return list(self.forward.units.values()) if self.forward else []

    def examine(self, unit: str) -> list[Finding]:
        """The finding about one unit; the first question runs the model. Raises StoppedError, unit and tensor named, if the gate fails."""
        if not self._ran and self.forward is not None:
            self._ran = True
            self._run(self.forward)
        if unit in self._found:
            return [self._found[unit]]
        if self._stopped is not None and not isinstance(self._stopped.cause, (NotInterpretedError, DamagedError, ImportError)):
            raise self._stopped
        return [self._not_run(unit)]

    def _run(self, forward: Forward) -> None:
        needs = Needs.of(forward)
        if needs.short:
            for path in self.units:
                self._found[path] = Finding(CODE, path, Outcome.NOT_INTERPRETED, f"not run: {needs.sentence()}", needs.figures())
            return
        try:
            forward.run(self._step)
        except NotInterpretedError as error:
            self._stopped = StoppedError(WHOLE, "the model's inputs", error)
        except StoppedError as error:
            self._stopped = error

    def _not_run(self, path: str) -> Finding:
        """A unit that no finding is about: named, never passed."""
        assert self.forward is not None
        if path == OUTSIDE:
            named = ", ".join(self.outside[:SHOWN]) + (f" and {len(self.outside) - SHOWN} more" if len(self.outside) > SHOWN else "")
            return Finding(CODE, path, Outcome.NOT_INTERPRETED, f"no module of the model holds them, so that they were not run: {named}")
        if self._stopped is not None:
            return Finding(CODE, path, Outcome.NOT_INTERPRETED, f"not run: {self._stopped}")
        unit = self.forward.units[path]
        if unit.keys and unit.keys <= {key for ran in self.forward.ran for key in self.forward.units[ran].keys}:
            return Finding(CODE, path, Outcome.PASSED, figures={"tied": True})  # the same tensors were judged where they were used
        if adapted := sorted(unit.touched | (unit.keys & self.forward.weights.ledger.unjudged.keys())):
            return Finding(CODE, path, Outcome.NOT_INTERPRETED, f"adapted, but tokens alone never reach it: {', '.join(adapted[:SHOWN])}")
        return Finding(CODE, path, Outcome.UNDECIDED, "tokens alone never reach it, and no adapter touches it", tensors_of(unit))

    def _step(self, unit: Unit, call: Call, layer: bool) -> Any:
        """One unit. Raises NotInterpretedError, which ends the forward, after the last that is asked about."""
        output = self._judge(unit, call, layer)
        if self._only is not None and all(path in self._found for path in self.units if fnmatchcase(path, self._only)):
            raise NotInterpretedError("no other unit was asked about")
        return output

    def _judge(self, unit: Unit, call: Call, layer: bool) -> Any:
        """Runs one unit in all versions, keeps the finding, and returns what goes on."""
        problem = _refused(unit)
        try:
            if problem is None and unit.touched:
                trial = touched(unit, call, layer=layer)
                self._found[unit.path] = _finding(unit, trial)
                return trial.passed_on
            if problem is None:
                answer, off = untouched(unit, call)
                self._found[unit.path] = _untouched(unit, off)
                return answer.passed_on
        except DamagedError as error:
            if unit.weights.version.kind != "merged":
                raise
            problem = Finding(CODE, unit.path, Outcome.FAILED, f"{unit.weights.reading} cannot be read: {error}", {"unreadable": True})
        self._found[unit.path] = problem
        return unit.answer(Version("unmerged"), call).passed_on


def _refused(unit: Unit) -> Finding | None:
    """What keeps a unit from being compared at all."""
    base, merged, ledger = unit.weights.base.tensors, unit.weights.merged.tensors, unit.weights.ledger
    missing = sorted(key for key in unit.keys if key not in merged)
    if missing:
        sentence = f"{len(missing)} of its {len(unit.keys)} tensors are missing from the merged checkpoint: {', '.join(missing[:SHOWN])}"
        return Finding(CODE, unit.path, Outcome.FAILED, sentence, {"missing": len(missing)})
    if other := sorted(key for key in unit.keys if merged[key].shape != base[key].shape):
        sentence = f"{other[0]} has the shape {merged[other[0]].shape}, {base[other[0]].shape} was expected"
        return Finding(CODE, unit.path, Outcome.FAILED, sentence)
    if unknown := sorted(unit.keys & ledger.unjudged.keys()):
        return Finding(CODE, unit.path, Outcome.NOT_INTERPRETED, f"{unknown[0]}: {ledger.unjudged[unknown[0]]}")
    if coded := sorted(key for key in unit.keys if merged[key].numbers is None):
        return Finding(CODE, unit.path, Outcome.NOT_INTERPRETED, f"{coded[0]} is stored as {merged[coded[0]].dtype}, which is not decoded")
    return None


def _untouched(unit: Unit, off: float) -> Finding:
    peak: dict[str, Figure] = {"live": unit.weights.meter.peak}
    if not off:
        return Finding(CODE, unit.path, Outcome.PASSED, figures=peak)
    figures = peak | {"difference": off}
    if not unit.weights.ledger.complete:
        sentence = "its answer is not the base's, and cannot be judged: not everything about the adapter is interpreted"
        return Finding(CODE, unit.path, Outcome.NOT_INTERPRETED, sentence, figures)
    return Finding(CODE, unit.path, Outcome.FAILED, "no adapter touches it, but its answer is not the base's", figures)


def _finding(unit: Unit, trial: Trial) -> Finding:
    """The judgement of an adapted unit."""
    figures = figures_of(unit, trial)
    if trial.idle:
        sentence = f"adapted, but the model never used it: {', '.join(sorted(trial.idle)[:SHOWN])}"
        return Finding(CODE, unit.path, Outcome.NOT_INTERPRETED, sentence, figures)
    if not all(bool(torch.isfinite(link.base_u).all() and torch.isfinite(link.exact_most).all()) for link in trial.links.values()):
        return Finding(CODE, unit.path, Outcome.UNDECIDED, "the answers of base or adapter are not finite", figures)
    broken = [sentence for name, link in trial.links.items() for sentence in broken_link(name, link)]
    if sentence := rerouted(trial):
        broken.append(sentence)
    if broken:
        return Finding(CODE, unit.path, Outcome.FAILED, "; ".join(broken[:SHOWN]), figures)
    output = trial.links[OUTPUT]
    if not bool((output.base_u > output.exact_most).all()):
        why = "the base alone would pass: its answer is as near to the unmerged adapter's as float32 can tell"
        return Finding(CODE, unit.path, Outcome.UNDECIDED, why, figures)
    if trial.unseen:
        named = ", ".join(sorted(min(group) for group in trial.unseen)[:SHOWN])
        sentence = f"the base alone would pass: {len(trial.unseen)} adapted tensors could lack their delta unseen: {named}"
        return Finding(CODE, unit.path, Outcome.UNDECIDED, sentence, figures)
    return Finding(CODE, unit.path, Outcome.PASSED, figures=figures)
