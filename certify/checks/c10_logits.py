"""C10: the whole model, run freely, predicts what base + unmerged adapter predict, as far as the noise of storage lets anybody tell.

KL(u‖v) is the mean over tokens of Σ p_u·(log p_u − log p_v), in nats. For small changes of the logits it is half a quadratic form, so that
its root obeys the triangle inequality, and

    √KL(u‖m)  ≤  √KL(u‖r)  +  what a right merge may differ from r  +  float32's noise in two forwards,

the last two as `certify.layers.tolerance` derives them: from √KL(r‖a) and √KL(u‖r), and from √KL(x‖shaken). Rows of the embedding are
shaken as a whole, which stands for the roundings of the residual stream: two a layer, fewer than the longest sum has terms. Where a right
merge has no choice, m is r bit for bit, and there is no noise either.

KL is computed as Σ p·(eᵈ − 1 − d), d = log q − log p, whose terms are never negative: the textbook sum cancels below 2⁻⁵³, and sound merges
in float32 are at 1e-18. The error of d itself, about 2⁻⁵³ of a logit, is far below float32's noise in it.

Decidable only if the base alone would fail. Otherwise it is `undecided`: end to end, one missing module among many disappears in the noise
of the others, and C4, C5 and C9 decide.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from certify.encodings.coded import companions
from certify.errors import DamagedError, NotInterpretedError
from certify.expect.ledger import Ledger
from certify.finding import Figure, Finding, Outcome
from certify.inputs.adapter import Adapter
from certify.inputs.checkpoint import Checkpoint
from certify.layers.answers import Answer
from certify.layers.forward import end_to_end
from certify.layers.tolerance import admissible, float32_noise, tail
from certify.layers.weights import Kind, Weights

CODE = "C10"
TITLE = "the model predicts what base + unmerged adapter predict"
SUBJECT = "logits"
KINDS: tuple[Kind, ...] = ("rounded", "base", "merged", "admissible", "exact", "shaken")


def logits(
    base: Checkpoint, merged: Checkpoint, ledger: Ledger, adapters: Sequence[Adapter], weights: Sequence[float], criterion: str
) -> Finding:
    """Seven forwards of the whole model from disk. Memory: one matrix, and seven sets of logits."""
    there, scales = merged.tensors, companions(base.tensors)
    if gone := sorted(n for n, held in base.tensors.items() if n not in scales and (n not in there or there[n].shape != held.shape)):
        sentence = f"not run: {gone[0]} is missing from the merged checkpoint, or has another shape"
        return Finding(CODE, SUBJECT, Outcome.NOT_INTERPRETED, sentence)
    if ledger.unjudged or not ledger.touched:
        sentence = f"not run: {next(iter(ledger.unjudged.values()), 'no tensor is known to be adapted')}"
        return Finding(CODE, SUBJECT, Outcome.NOT_INTERPRETED, sentence)
    try:
        answers, read = end_to_end(base, merged, ledger, adapters, weights, criterion, KINDS)
        found = [_logits(answer) for answer in answers]
    except NotInterpretedError as error:
        return Finding(CODE, SUBJECT, Outcome.NOT_INTERPRETED, f"not run: {error}")
    except DamagedError as error:
        return Finding(CODE, SUBJECT, Outcome.FAILED, f"the model cannot be run: {error}", {"unreadable": True})
    return _finding(*found, read=read)


def _finding(u: Tensor, r: Tensor, b: Tensor, m: Tensor, a: Tensor, x: Tensor, shaken: Tensor, *, read: Weights) -> Finding:
    """The judgement of all sets of logits, (tokens, vocabulary) float64."""
    choices, ratio = read.choices({*read.ledger.parts, *read.ledger.composed})
    floor, base, merged, free = (math.sqrt(kl) for kl in (_kl(u, r), _kl(u, b), _kl(u, m), _kl(r, a)))
    room = admissible(a - r, _one(free), _one(floor), _one(choices), _one(ratio), each=False)
    noise = _float32(x, shaken, read) if choices else 0.0
    most = floor + float(room) + noise
    figures: dict[str, Figure] = {
        "kl_merged": _short(merged**2), "kl_base": _short(base**2), "kl_rounding": _short(floor**2), "kl_max": _short(most**2),
        "kl_float32": _short(noise**2),
        "top1_merged": _agreement(u, m), "top1_base": _agreement(u, b), "top1_rounding": _agreement(u, r), "tokens": len(u),
    }  # fmt: skip
    if not math.isfinite(base + floor + most):
        return Finding(CODE, SUBJECT, Outcome.UNDECIDED, "the logits of base or adapter are not finite", figures)
    if not merged <= most:
        sentence = (
            f"the merged model predicts at KL {figures['kl_merged']} nats from base + unmerged adapter, where rounding makes "
            f"{figures['kl_rounding']} and a right merge stays below {figures['kl_max']}; the base alone is at {figures['kl_base']}"
        )
        return Finding(CODE, SUBJECT, Outcome.FAILED, sentence, figures)
    if base <= most:
        why = f"the base alone would pass: KL {figures['kl_base']} nats, where {figures['kl_max']} is allowed"
        return Finding(CODE, SUBJECT, Outcome.UNDECIDED, why, figures)
    return Finding(CODE, SUBJECT, Outcome.PASSED, figures=figures)


def _logits(answer: Answer) -> Tensor:
    found: Any = getattr(answer.passed_on, "logits", None)
    if not isinstance(found, Tensor) or found.dim() != 3:
        raise NotInterpretedError("the model has no head that predicts tokens")
    return found.reshape(-1, found.shape[-1]).double()


def _float32(x: Tensor, shaken: Tensor, read: Weights) -> float:
    """√KL that the float32 of two forwards may make."""
    longest = max(max(stored.shape, default=1) for stored in read.base.tensors.values())
    return float(float32_noise(_one(math.sqrt(_kl(x, shaken))), longest, tail(shaken - x, each=False)))


def _kl(one: Tensor, other: Tensor) -> float:
    """Mean KL(one‖other) in nats; what is not a number counts as infinitely far."""
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    d = q - p
    value = float((p.exp() * (torch.expm1(d) - d)).sum(-1).mean())
    return max(value, 0.0) if math.isfinite(value) else math.inf


def _agreement(one: Tensor, other: Tensor) -> float:
    return _short(float((one.argmax(-1) == other.argmax(-1)).double().mean()))


def _one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def _short(value: float) -> float:
    return float(f"{value:.4g}") if math.isfinite(value) else torch.finfo(torch.float64).max
