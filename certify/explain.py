"""What the checks demand, in the words of this package's README: one section per code."""

from functools import cache
from pathlib import Path

README = Path(__file__).with_name("README.md")


@cache
def sections() -> dict[str, str]:
    """Code → its section, the heading `C4 merged` in the first line; Markdown."""
    told = README.read_text(encoding="utf-8").split("\n### ")[1:]
    return {section.split()[0]: section.partition("\n## ")[0].strip() for section in told}
