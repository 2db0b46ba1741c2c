"""summary.md: the verdict, the groups of findings and the worst twenty, fit for $GITHUB_STEP_SUMMARY and a merge request's comment."""

from typing import Any

from certify.report import words
from certify.report.summary import facts, headline
from certify.report.text import figure, shortened

SIGNS = {"CERTIFIED": "✅", "REJECTED": "❌", "INCOMPLETE": "⚠️", "ERROR": "💥"}
ESCAPED = {ord(sign): f"&#{ord(sign)};" for sign in "\\`*_[]<>&|~@#!$"}  # what Markdown, or a forge, would take for something else
GROUPS = 20


def render(statement: dict[str, Any]) -> str:
    """The document."""
    predicate = statement["predicate"]
    lines = [
        f"## {SIGNS[predicate['verdict']]} {plain(headline(predicate))} · {code(predicate['merged']['name'])}",
        "",
        plain(predicate["reason"], 1000),
        "",
    ]
    found = predicate["overview"]["faults"]
    if found["groups"]:
        lines += ["| check | what is wrong | where | subjects |", "|---|---|---|--:|"]
        for group in found["groups"][:GROUPS]:
            places = "<br>".join(code(place["pattern"]) for place in group["places"][:3])
            lines.append(f"| {group['code']} | {plain(group['cause'], 300)} | {places} | {figure(group['subjects'])} |")
        lines += [f"and {found['total'] - GROUPS:,} more groups" if found["total"] > GROUPS else "", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {plain(text, 300)} |" for name, text in facts(predicate, None) if name != "report"), ""]
    if rows := words.worst(predicate):
        lines += [
            "<details><summary>The worst twenty merged tensors</summary>",
            "",
            "| tensor | error / bound | retention | |",
            "|---|--:|--:|---|",
        ]
        lines += [f"| {code(r['where'])} | {words.error(r['ratio'])} | {figure(r['retention'])} | {plain(r['told'], 200)} |" for r in rows]
        lines += ["", "</details>", ""]
    return "\n".join(lines)


def plain(text: str, most: int = 160) -> str:
    """Somebody else's text as text."""
    return shortened(text, most).translate(ESCAPED)


def code(text: str) -> str:
    """Somebody else's name as code; a tag rather than backticks, which a name may hold."""
    return f"<code>{plain(text)}</code>"
