"""index.html: the page that a reviewer reads and signs. One file without scripts, fonts or links to elsewhere; made from certificate.json alone."""

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
    return room.get_template("index.html").render(**statement["predicate"], subject=statement["subject"], exit_code=exit_code, shown=SHOWN)
