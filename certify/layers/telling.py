"""What the versions of one unit tell a person: figures, and a sentence for whatever is wrong."""

import torch

from certify.finding import Figure
from certify.layers.answers import EXPERTS, OUTPUT, ROUTING
from certify.layers.tolerance import too_many
from certify.layers.trial import Link, Trial
from certify.layers.unit import Unit

SHOWN = 3  # names of tensors in a sentence


def broken_link(name: str, link: Link) -> list[str]:
    """What is wrong with one measure, in a sentence each."""
    told = []
    off = link.exact > link.exact_most
    if bool(off.any()):
        at = int((link.exact - link.exact_most).argmax())
        told.append(
            f"{_where(name, at)} of W + Δ is {float(link.exact[at]):.3g} from that of PEFT's unmerged layers, where float32 "
            f"allows {float(link.exact_most[at]):.3g}: the adapter, as it was trained, does not act as its weights do when they are added"
        )
    wrong = link.merged > link.merged_most
    if bool(wrong.any()):
        at = int((link.merged - link.merged_most).argmax())
        more = f" ({int(wrong.sum())} of {len(wrong)} experts)" if name.startswith(EXPERTS) else ""
        told.append(
            f"{_where(name, at)} is {float(link.merged[at]):.3g} from that of W + Δ rounded{more}, where a right merge "
            f"stays below {float(link.merged_most[at]):.3g}, and rounding itself makes {float(link.rounding[at]):.3g}"
        )
    return told


def _where(name: str, at: int) -> str:
    kind, _, path = name.partition(" ")
    return {ROUTING: f"the score of the router {path}", EXPERTS: f"the answer of expert {at} of {path}"}.get(kind, "the answer")


def rerouted(trial: Trial) -> str:
    """Tokens that went to other experts than in r: explained by near ties, or not."""
    flips, free = trial.flips["merged_rounded"], trial.flips["free_rounded"]
    scores = [link.merged for name, link in trial.links.items() if name.startswith(ROUTING)]
    still = bool(scores) and not any(bool(score.any()) for score in scores)  # no score moved, and yet tokens did
    if flips and (still or too_many(flips, free)):
        return f"{flips} of {trial.tokens} tokens go to other experts, where as large a change of the weights moves {free}"
    return ""


def figures_of(unit: Unit, trial: Trial) -> dict[str, Figure]:
    """What a person can weigh; distances as shares of ‖u‖, K in units of rounding noise."""
    output = trial.links[OUTPUT]
    share = {"err_merged": output.merged_u, "err_base": output.base_u, "err_rounding": output.rounding, "exact_unmerged": output.exact,
             "exact_unmerged_max": output.exact_most}  # fmt: skip
    elements = sum(unit.weights.base.tensors[key].entry.elements for key in unit.touched)
    figures: dict[str, Figure] = {name: _short(float(value) / trial.size if trial.size else 0.0) for name, value in share.items()}
    figures |= {"K": _ratio(output.merged, output.rounding), "K_max": _ratio(output.merged_most, output.rounding)}
    figures |= {"free_elements": int(output.choices), "free_share": _short(float(output.choices) / elements)}
    experts = [link for name, link in trial.links.items() if name.startswith(EXPERTS)]
    if experts:
        figures |= {"experts": sum(len(link.merged) for link in experts), "K_expert": max(_worst(link) for link in experts)}
    if trial.flips["rounded_unmerged"] or trial.flips["merged_rounded"] or experts:
        figures |= {f"flips_{name}": count for name, count in trial.flips.items()}
    if carried := sorted(unit.weights.carried & unit.keys):
        figures["own"] = "\n".join(carried)  # PEFT has no layer here: for these, x = u by construction
    return figures | {"unseen": len(trial.unseen), "live": unit.weights.meter.peak} | tensors_of(unit)


def tensors_of(unit: Unit) -> dict[str, Figure]:
    """The tensors that C3 or C4 must have passed where this check cannot tell."""
    return {"tensors": "\n".join(sorted(unit.touched or unit.keys))}


def _worst(link: Link) -> float:
    return _short(float((link.merged / link.rounding.clamp(min=1e-300)).where(link.merged > 0, torch.zeros(())).max()))


def _ratio(value: torch.Tensor, noise: torch.Tensor) -> float | None:
    return _short(float(value) / float(noise)) if float(noise) else None


def _short(value: float) -> float:
    return float(f"{value:.4g}") if value < torch.inf else float(torch.finfo(torch.float64).max)
