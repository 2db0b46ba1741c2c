"""The certificate's facts in plain words: what is wrong and where, the worst tensors, and what this certificate cannot tell."""

from collections.abc import Sequence
from typing import Any

from certify.inputs.folder import listing_digest
from certify.overview.names import place
from certify.report.charts import NOT_FINITE
from certify.report.text import figure, shortened

WORST = 20
LEVELS = {"weights": "C4", "modules": "C5", "layers": "C9", "logits": "C10"}  # level → the check that it adds


def where(name: str) -> str:
    """layer 34: mlp.experts.230.down_proj; a name outside the layers is itself."""
    found = place(name)
    if found.layer is None:
        return shortened(name)
    rest = name.removeprefix(f"{found.stack}.{found.layer}.").removesuffix(".weight")
    return shortened(f"layer {found.layer}: {rest}")


def error(value: float) -> str:
    """A ratio of error to bound."""
    return "not finite" if value >= NOT_FINITE else figure(float(value))


def worst(predicate: dict[str, Any]) -> list[dict[str, Any]]:
    """At most twenty merged tensors, the farthest from what is right first: place, figures, a sentence."""
    causes = {item["subject"]: _cause(item) for item in reversed(predicate["failures"]) if item["code"] == "C4"}
    return [row | {"where": where(row["subject"]), "told": _told(row, causes.get(row["subject"]))} for row in predicate["worst"][:WORST]]


def _told(row: dict[str, Any], cause: str | None) -> str:
    if cause is not None:
        return f"wrong: {cause}"
    kept = row["retention"]
    share = (
        ""
        if kept is None
        else f"; {kept:.1%} of the adapter's change is stored"
        if -10 < kept < 10
        else f"; {kept:.3g} × the change is stored"
    )
    if row["ratio"] > 1:
        return f"its largest error is {error(row['ratio'])} × what one rounding may use{share}"
    return f"right: its largest error is {row['ratio']:.1%} of what one rounding may use{share}"


def _cause(finding: dict[str, Any]) -> str:
    return str(finding["figures"].get("cause") or finding["sentence"])


def levels(predicate: dict[str, Any]) -> list[tuple[str, str]]:
    """(level, state) in their order: asked for and passed, asked for and not passed, not asked for."""
    names = [*LEVELS]
    asked = names.index(predicate["level"]) if predicate["level"] in names else -1
    states = []
    for number, (name, code) in enumerate(LEVELS.items()):
        counts = predicate["checks"].get(code, {})
        bad = counts.get("failed") or counts.get("not_interpreted")
        states.append((name, "not asked" if number > asked else "failed" if bad else "passed"))
    return states


def blind_spots(predicate: dict[str, Any]) -> list[str]:
    """What this certificate does not say."""
    told = [f"{item['code']} {item['title']}: not judged; {item['sentence']}." for item in predicate["not_judged"]]
    if (status := predicate["base"]["identity"]["status"]) != "proven":
        told.append(f"The base is {status}, not proven: nobody stated its digest (--base-digest).")
    if any(adapter["claimed"] for adapter in predicate["adapters"]):
        told.append("The adapter is claimed: only the merged directory said where it lies.")
    if count := len(predicate["undecided"]):
        told.append(f"{figure(count)} modules or layers answer alike with and without the delta: there C4 decides alone.")
    if predicate["criterion"] == "faithful":
        told.append(
            "Under --criterion=faithful both neighbours of W + Δ are right: an element on the other one cannot be told without a replay of "
            "the merge. C8 holds the delta of each tensor as a whole."
        )
    if hidden := len(predicate["self_check"]["not_armable"]):
        told.append(f"{hidden} planted faults are smaller than the stored grid, and were not asked for.")
    told.append("Whether base and adapter are any good, safe or licensed is not judged; carried code is compared, not read.")
    return told


def merged_digest(subject: Sequence[dict[str, Any]]) -> str:
    """The digest of the merged directory. Empty for names that no file can have."""
    try:
        return listing_digest({file["name"]: file["digest"]["sha256"] for file in subject})
    except UnicodeEncodeError:
        return ""
