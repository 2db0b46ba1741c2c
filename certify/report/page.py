"""index.html: the page that a reviewer reads and signs. One file, no scripts, no links to elsewhere, made from certificate.json alone."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from certify.report.text import figure, human, paragraph, printable

SHOWN = 100  # failures told in full; the certificate holds up to 1000
TEMPLATES = Path(__file__).with_name("templates")


def render(statement: dict[str, Any], exit_code: int) -> str:
    """The page about one certificate (an in-toto statement)."""
    room = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    room.filters |= {"printable": printable, "figure": figure, "human": human, "paragraph": paragraph}
    facts = statement["predicate"] | {"subject": statement["subject"], "exit_code": exit_code, "shown": SHOWN}
    facts["checks"] = dict(sorted(facts["checks"].items(), key=lambda entry: int(entry[0][1:])))  # C2 before C10
    entries: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for item in facts["accepted"]:
        entries.setdefault((item["pattern"], item["reason"], item["owner"]), []).append(item)
    facts["declared"] = list(entries.values())
    return room.get_template("index.html").render(facts)
