"""The README's sections about checks as HTML: paragraphs, tables, code. Our own text, escaped like everybody's."""

import re
from html import escape

from certify.explain import sections

INLINE = ((r"`([^`]+)`", r"<code>\1</code>"), (r"\*\*([^*]+)\*\*", r"<strong>\1</strong>"), (r"\*([^*\s][^*]*)\*", r"<em>\1</em>"),
          (r"\[([^\]]+)\]\([^)]+\)", r"\1"))  # fmt: skip


def explained(code: str) -> str:
    """The paragraphs about one check; empty for a code that this version does not know."""
    _, _, body = sections().get(code, "").partition("\n")
    return "\n".join(_block(block) for block in re.split(r"\n{2,}(?![^`]*\n```\n)", body.strip()) if block.strip())


def _block(block: str) -> str:
    if block.startswith("```"):
        return f"<pre>{escape(block.strip('`').strip())}</pre>"
    if block.startswith("|"):
        head, _, *rows = (re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in block.splitlines())
        top = "".join(f"<th>{_inline(cell.strip())}</th>" for cell in head)
        rest = "".join("<tr>" + "".join(f"<td>{_inline(cell.strip())}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<div class=wide tabindex=0><table><thead><tr>{top}</tr></thead><tbody>{rest}</tbody></table></div>"
    return f"<p>{_inline(block)}</p>"


def _inline(text: str) -> str:
    told = escape(text, quote=False)
    for pattern, shown in INLINE:
        told = re.sub(pattern, shown, told)
    return told
