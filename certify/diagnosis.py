"""Why a merged tensor is wrong, in plain words: the first usual cause that explains it, or "undetermined".

Only tensors that C4 refuses come here, and of those at most SAMPLE elements, so that a giant that is wrong everywhere stays affordable.
A cause is named where its prediction (`certify.suspects`) explains the elements that are wrong without contradicting the others. It is a
label for the reader: nothing passes because its cause is known.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from certify import suspects
from certify.bounds import Delta, bound
from certify.coefficient import Coefficient, coefficient
from certify.finding import Figure
from certify.inputs.stored import Stored
from certify.relatives import Relative
from certify.suspects import Scene, Suspect, picked

SAMPLE = 1 << 19  # elements looked at
ROWS_MAX = 4096  # rows looked at; each is one read
EXPLAINED = 0.98  # of the wrong elements …
CONTRADICTED = 1e-3  # … and of all elements: ties that another order of float32 sums decides otherwise
ISOLATED = 8  # wrong elements up to which a tensor was damaged rather than merged wrongly
UNDETERMINED = "undetermined"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The cause in plain words; the coefficient of the declared delta; how many of the telling elements do not fit that coefficient."""

    cause: str
    fit: Coefficient | None

    @property
    def sentence(self) -> str:
        told = f"cause: {self.cause}"
        if self.fit is None or self.fit.share < 0.5:
            return f"{told}; no coefficient of the delta fits most elements"
        low, high = f"{self.fit.low:.5g}", f"{self.fit.high:.5g}"
        between = low if low == high else f"between {low} and {high}"
        return f"{told}; coefficient of the delta {between} in {self.fit.share:.1%} of the telling elements"

    def figures(self) -> dict[str, Figure]:
        if self.fit is None:
            return {"cause": self.cause}
        return {"cause": self.cause, "coefficient_low": self.fit.low, "coefficient_high": self.fit.high, "residual": 1 - self.fit.share}


def diagnose(
    base: Stored,
    merged: Stored,
    deltas: Sequence[Delta],
    beyond: tuple[Tensor, Tensor],
    criterion: str,
    relatives: Callable[[], Iterable[Relative]],
) -> Diagnosis:
    """The cause of one refused tensor. beyond: how many elements of each row (rows,) and column (columns,) the criterion refuses."""
    scene = _scene(base, merged, deltas, beyond, criterion)
    fit = coefficient(scene.merged, scene.base, scene.declared, scene.grid)
    count = int(beyond[0].sum())
    lost = scene.wrong & ~torch.isfinite(scene.merged)
    if bool(lost.any()):
        return Diagnosis(f"not finite: NaN or infinity was stored ({float(lost.sum() / scene.wrong.sum()):.0%} of the wrong elements)", fit)
    if torch.equal(scene.grid.once(scene.base.float()), scene.merged):
        return Diagnosis("never merged: equal to the base", fit)
    if count > ISOLATED or scene.merged.numel() <= 4 * ISOLATED:
        explained = list(_explaining(scene, _suspects(scene, fit, relatives)))
        if explained:
            least = min(contradicted for _, contradicted in explained)
            alike = [cause for cause, contradicted in explained if contradicted <= 2 * least + 2]  # they cannot be told apart
            return Diagnosis(" or ".join(alike), fit)
    return Diagnosis(_pattern(scene, fit, count), fit)


def _suspects(scene: Scene, fit: Coefficient | None, relatives: Callable[[], Iterable[Relative]]) -> Iterator[Iterator[Suspect]]:
    """Kinds of causes; within a kind, the likelier first."""
    yield suspects.factors(scene, fit)
    yield suspects.parts(scene)
    yield suspects.regions(scene)
    yield suspects.places(scene, relatives())
    yield suspects.arithmetic(scene)


def _explaining(scene: Scene, kinds: Iterable[Iterable[Suspect]]) -> Iterator[tuple[str, int]]:
    """(cause, elements that contradict it): of each kind the first that explains the tensor."""
    thin = scene.every(max(1, min(16, len(scene.rows) // 16)))  # a sixteenth of the rows decides who is looked at in full
    for chosen in kinds:
        for cause, prediction in chosen:
            if float((~prediction(thin)).double().mean()) > 10 * CONTRADICTED:
                continue
            holds = prediction(scene)
            contradicted = int((~holds).sum())
            if contradicted <= CONTRADICTED * holds.numel() and float(holds[scene.wrong].double().mean()) >= EXPLAINED:
                yield cause, contradicted
                break


def _pattern(scene: Scene, fit: Coefficient | None, count: int) -> str:
    """What the errors look like where no prediction fits."""
    error = scene.merged.double() - scene.declared.exact
    half = scene.grid.half_step(scene.declared.exact)
    near = fit is not None and 0.8 < fit.low <= fit.high < 1.2
    excess = (error.abs() / half)[scene.wrong] - 1  # in half steps: what a rounding cannot explain
    if count <= ISOLATED:
        return f"{count} isolated element{'s' if count > 1 else ''} altered: a flipped bit or a damaged file"
    if near and float(scene.wrong.double().mean()) < 0.1 and float(excess.median()) > 0.5 and float((excess < 4).double().mean()) > 0.9:
        return "another base revision: the delta is right, single elements of the base are a step off"
    size = scene.base.double().abs()
    relative = float(error.square().mean().sqrt() / size.square().mean().sqrt())
    for bits, step, least, most in (("e4m3", 2**-4, 0.012, 0.05), ("e5m2", 2**-3, 0.03, 0.1)):
        inside = float((error.abs() <= step * size + 2 * half).double().mean())
        if inside > 0.95 and least < relative < most and float(scene.wrong.double().mean()) > 0.5:
            return f"re-quantised: the errors are those of a round trip through 8-bit floats ({bits})"
    either = scene.bound(scene.deltas, "faithful")
    if float(excess.median()) > 0.25 and bool(either.holds(scene.merged.double()).all()):
        return "another rounding: neighbours of W + Δ that are not the nearest (truncated, stochastic or faithful)"
    if near and _everywhere_a_little(scene, error.abs() - half) and _in_the_adapters_space(scene):
        return "nearly this adapter's delta: a stale or other checkpoint of the adapter"
    return UNDETERMINED


def _everywhere_a_little(scene: Scene, beyond: Tensor) -> bool:
    """Whether nearly every row and column is wrong, and by less than a third of Δ altogether; beyond: error that rounding leaves over."""
    delta = scene.declared.exact - scene.base.double()
    spread = min(float(mask.double().mean()) for mask in scene.beyond)
    return spread > 0.9 and float(beyond.clamp(min=0).norm() / delta.norm()) < 1 / 3


def _in_the_adapters_space(scene: Scene) -> bool:
    """Whether what is wrong answers to the inputs that the adapter answers to, three times as much as noise would."""
    delta = scene.declared.exact - scene.base.double()
    added = scene.merged.double() - scene.base.double()
    rest = added - delta * (added * delta).sum() / delta.square().sum()
    span = torch.cat([picked(d, scene.rows).double().right for d in scene.deltas])
    basis = torch.linalg.qr(span.T)[0]
    share = float((rest @ basis).square().sum() / rest.square().sum())
    return bool(share > 3 * basis.shape[1] / basis.shape[0])


def _scene(base: Stored, merged: Stored, deltas: Sequence[Delta], beyond: tuple[Tensor, Tensor], criterion: str) -> Scene:
    """Rows to look at: half of them where the tensor is wrong, the others evenly spread."""
    height, columns = base.shape
    most = max(2, min(ROWS_MAX, SAMPLE // max(1, columns)))
    rows = torch.arange(height)
    if height > most:
        wrong = beyond[0].nonzero().view(-1)
        half = most // 2
        rows = torch.tensor(sorted({*_spread(wrong, half).tolist(), *_spread(rows, most - half).tolist()}))
    ours, theirs = base.rows(rows.tolist()), merged.rows(rows.tolist())
    grid, here = merged.grid(rows.tolist()), [picked(delta, rows) for delta in deltas]
    declared = bound(ours, here, grid, criterion, decoded=base.decoded)
    masks = beyond[0] > 0, beyond[1] > 0
    return Scene(rows, ours, theirs, deltas, declared, ~declared.holds(theirs.double()), masks, grid, base.decoded)


def _spread(rows: Tensor, most: int) -> Tensor:
    """At most `most` of them, evenly spaced, the first and the last included."""
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).round().long()]
