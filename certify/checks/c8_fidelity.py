"""C8: the fine-tune is still there after storage. C4 asks whether a tensor was rounded rightly; a right rounding may still lose it."""

from collections import Counter
from collections.abc import Sequence
from math import fsum
from typing import Any

from certify.finding import Figure, Finding, Outcome

CODE = "C8"
TITLE = "the fine-tune survived storage"
WHOLE = "adapter"  # the subject of the judgement over all tensors
WARNING = 0.9  # retention of the whole adapter below which a certificate says so
TOLERANCE, SIGMAS = 0.1, 3.0  # per tensor under `faithful`: 1 ± (0.1 + 3σ); σ is the tensor's own, see certify/fidelity.py
FIGURES = ("retention", "error_energy", "subspace_error", "delta_norm", "sigma")
QUANTILES = {"least": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1.0}
BIN = 0.05  # width of a bar of the histogram; the outer bars hold everything beyond


def tensor_fidelity(merged: Finding, criterion: str) -> Finding | None:
    """The figures of one tensor, out of what C4 folded while it read the rows; None where C4 could not read them.

    Judged per tensor only under `faithful`, which promises every tensor its delta: one unmerged module could hide in the mean. Where the
    noise of the neighbours is so large that a tensor without its delta would pass, it is undecided: C4 accepts neighbours, and cannot tell.
    """
    if "delta_norm" not in merged.figures:
        return None
    figures = {name: merged.figures[name] for name in FIGURES if name in merged.figures}
    kept, sigma = figures["retention"], figures.get("sigma")
    if kept is None and figures["delta_norm"] != 0:
        return Finding(CODE, merged.subject, Outcome.FAILED, "no retention: Δ or the stored values are not finite", figures)
    if criterion != "faithful" or not isinstance(kept, float):
        return Finding(CODE, merged.subject, Outcome.PASSED, figures=figures)
    room = TOLERANCE + SIGMAS * (sigma if isinstance(sigma, float) else 0.0)
    rule = f"faithful rounding keeps 1 ± {room:.3g} of this tensor's delta (0.1 + 3σ)"
    if abs(kept - 1) > room:
        return Finding(CODE, merged.subject, Outcome.FAILED, f"retention {kept:.3g}; {rule}", figures)
    if room >= 1:
        return Finding(CODE, merged.subject, Outcome.UNDECIDED, f"{rule}, so that a tensor without its delta would pass", figures)
    return Finding(CODE, merged.subject, Outcome.PASSED, figures=figures)


def whole_fidelity(findings: Sequence[Finding], touched: int, least: float) -> list[Finding]:
    """The retention of the whole adapter, each tensor weighted by ‖Δ‖².

    No judgement where some of the touched tensors were not judged, or where C4 refuses one or cannot tell: what was never merged was not
    lost in storage.

    touched: how many tensors the adapter adds to      least: the retention below which the merge is refused
    """
    tensors = [finding for finding in findings if finding.code == CODE]
    wrong = any(finding.code == "C4" and finding.outcome in (Outcome.FAILED, Outcome.UNDECIDED) for finding in findings)
    if not touched or len(tensors) < touched or wrong:
        return []
    kept = retention(tensors)
    figures: dict[str, Figure] = {"retention": kept, "min_retention": least, "tensors": len(tensors)}
    if kept is None or kept >= WARNING:
        return [Finding(CODE, WHOLE, Outcome.PASSED, figures=figures)]
    told = f"{kept:.1%} of the adapter's change is in the stored weights"
    if kept >= least:
        return [Finding(CODE, WHOLE, Outcome.PASSED, f"{told}, below {WARNING:.0%}", figures)]
    advice = "every rounding is right, but most of Δ is smaller than the grid: store a finer dtype, or round faithfully"
    sentence = f"refused: the fine-tune did not survive storage: {told}, below {least:.0%}; {advice}"
    return [Finding(CODE, WHOLE, Outcome.FAILED, sentence, figures | {"whole": True})]


def retention(tensors: Sequence[Finding]) -> float | None:
    """Σ⟨Δ', Δ⟩ / Σ⟨Δ, Δ⟩ over the tensors whose figures are finite."""
    pairs = [(finding.figures.get("retention"), finding.figures.get("delta_norm")) for finding in tensors]
    finite = [(kept, norm**2) for kept, norm in pairs if isinstance(kept, float) and isinstance(norm, float)]
    energy = fsum(weight for _, weight in finite)  # fsum: the same figure in whatever order the tensors were judged
    return fsum(kept * weight for kept, weight in finite) / energy if energy > 0 else None


def distribution(findings: Sequence[Finding], least: float) -> dict[str, Any]:
    """The certificate's words on fidelity: the whole, quantiles over tensors, a histogram of the retention (bar centre, tensors)."""
    tensors = [finding for finding in findings if finding.code == CODE and finding.subject != WHOLE]
    columns = {name: sorted(v for f in tensors if isinstance(v := f.figures.get(name), float)) for name in FIGURES[:3]}
    bars = Counter(min(max(round(kept / BIN), -1), round(1 / BIN) + 1) for kept in columns["retention"])
    return {
        "retention": retention(tensors),
        "min_retention": least,
        "tensors": len(tensors),
        "quantiles": {name: _quantiles(values) for name, values in columns.items()},
        "histogram": [[round(bar * BIN, 2), bars[bar]] for bar in range(-1, round(1 / BIN) + 2)],
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    """Of sorted values: the value at each share of the way."""
    return {name: values[round(share * (len(values) - 1))] for name, share in QUANTILES.items()} if values else {}
