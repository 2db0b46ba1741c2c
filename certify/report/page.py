"""index.html: the page that a reviewer reads and signs. One file, no scripts, no links to elsewhere, made from certificate.json alone."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from certify.report import charts, words
from certify.report.sections import explained
from certify.report.text import NAME, figure, human, paragraph, printable, shortened

LINES = 16  # of print for all faults on page one; if they would take more, each has one
FIRST, SHOWN = 8, 100  # faults, accepted differences and the like that are told on page one; and below
TENSORS = ("not judged", "untouched", "merged", "replaced", "missing", "extra")  # in the order of a reader
TEMPLATES = Path(__file__).with_name("templates")
MEANINGS = {  # verdict → class, sentence, exit code of the run
    "CERTIFIED": ("sound", "This checkpoint is what base and adapter say it is, as far as this level looks.", 0),
    "REJECTED": ("refused", "This checkpoint is not what base and adapter say it is. Do not release it.", 1),
    "INCOMPLETE": ("open", "Not everything was judged. This is neither a certificate nor a rejection.", 10),
    "ERROR": ("refused", "The gate itself failed. This says nothing about the checkpoint.", 3),
}


def render(statement: dict[str, Any]) -> str:
    """The page about one certificate (an in-toto statement), which must be as `certify.report.read` demands."""
    room = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    room.filters |= {"printable": printable, "short": shortened, "figure": figure, "human": human, "paragraph": paragraph}
    room.filters |= {"where": words.where, "error": words.error, "explained": lambda code: Markup(explained(code))}
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return room.get_template("index.html").render(facts(statement) | {"style": Markup(style), "style_digest": _digest(style)})


def facts(statement: dict[str, Any]) -> dict[str, Any]:
    """What the template shows."""
    predicate: dict[str, Any] = statement["predicate"]
    seen, tone = predicate["overview"], MEANINGS[predicate["verdict"]]
    told = predicate | {"subject": statement["subject"], "merged_digest": words.merged_digest(statement["subject"]), "seen": seen}
    told |= {
        "tone": tone[0],
        "meaning": tone[1],
        "exit_code": tone[2],
        "first": FIRST,
        "shown": SHOWN,
        "requester": predicate.get("requester"),
    }
    told["crowded"] = sum(map(_lines, seen["faults"]["groups"][:FIRST])) > LINES
    told["checks"] = dict(sorted(predicate["checks"].items(), key=lambda entry: int(entry[0][1:])))  # C2 before C10
    told["tensors"] = {kind: predicate["tensors"][kind] for kind in sorted(predicate["tensors"], key=_order)}
    told["maps"] = [charts.heat_map(stack, number) for number, stack in enumerate(seen["stacks"]) if stack["kinds"]]
    told["legends"] = {kind: charts.legend(kind) for kind in ("state", "retention", "ratio")}
    told["bars"] = {
        "retention": charts.histogram(predicate["fidelity"]["histogram"], "retention"),
        "ratio": charts.histogram(seen["error"]["histogram"], "ratio"),
    }
    told["curve"] = charts.curve(seen["layers"])
    told["worst"] = words.worst(predicate)
    told["levels"], told["blind"] = words.levels(predicate), words.blind_spots(predicate)
    told["declared"] = _declared(predicate["accepted"])
    return told


def _lines(group: dict[str, Any]) -> int:
    """Of print that one group of findings takes on page one."""
    places: int = sum(-(-min(len(place["pattern"]), NAME) // 60) for place in group["places"][:2])
    cause: int = -(-min(len(group["cause"]), 200) // 40)
    return max(cause, places + int(group["places_total"] > 2))


def _order(kind: str) -> int:
    return TENSORS.index(kind) if kind in TENSORS else len(TENSORS)


def _declared(accepted: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Accepted differences by the entry that accepts them."""
    entries: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for item in accepted:
        entries.setdefault((item["pattern"], item["reason"], item["owner"]), []).append(item)
    return list(entries.values())


def _digest(style: str) -> str:
    """What the content security policy lets through."""
    return "sha256-" + base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
