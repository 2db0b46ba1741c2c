"""The certificate as a person meets it at the end of a terminal run: the verdict first, then why, then what that rests on."""

from collections import Counter
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Protocol

from certify.report.text import figure, human, printable

if TYPE_CHECKING:
    from certify.verdict import Certificate

COLOURS = {"CERTIFIED": "green", "REJECTED": "red", "INCOMPLETE": "yellow", "ERROR": "red"}
WIDTH = 100  # characters; longer lines tire
SCREENED = 5  # sentences of the screen
OUTCOMES = ("passed", "failed", "not_interpreted", "undecided")


class Terminal(Protocol):
    """What is used of pytest's terminal reporter."""

    def write_sep(self, sep: str, title: str | None = None, fullwidth: int | None = None, **markup: bool) -> None: ...
    def write_line(self, line: str | bytes, **markup: bool) -> None: ...


def show(certificate: "Certificate", report: Path | None, terminal: Terminal) -> None:
    """Print the certificate."""
    predicate, colour = certificate.statement["predicate"], COLOURS[certificate.verdict]
    terminal.write_sep("=", "certificate")
    terminal.write_line("")
    terminal.write_line(f"  {headline(predicate)}", bold=True, **{colour: True})
    for line in wrap(printable(certificate.reason), WIDTH, break_on_hyphens=False):
        terminal.write_line(f"  {line}")
    terminal.write_line("")
    for line, failed in checks(predicate["checks"]):
        terminal.write_line(f"  {line}", red=failed)
    terminal.write_line("")
    for name, text in [*facts(predicate, report), ("exit code", str(certificate.exit_code))]:
        terminal.write_line(f"  {name:<11} {text}")
    terminal.write_line("")


def headline(predicate: dict[str, Any]) -> str:
    """CERTIFIED(weights), or the bare verdict: a level says how far a sound checkpoint was examined."""
    verdict = str(predicate["verdict"])
    return f"{verdict}({predicate['level']})" if verdict == "CERTIFIED" else verdict


def checks(table: dict[str, dict[str, Any]]) -> list[tuple[str, bool]]:
    """One line per check, and whether something failed in it."""
    lines = []
    spoken = [(code, check) for code, check in table.items() if any(check[outcome] for outcome in OUTCOMES)]
    for code, check in sorted(spoken, key=lambda entry: int(entry[0][1:])):
        line = f"{code:<4} {check['passed']:>8,} passed"
        line += f"  {check['failed']:>6,} failed" if check["failed"] else " " * 15
        line += f"  {check['not_interpreted']:,} not interpreted" if check["not_interpreted"] else ""
        line += f"  {check['undecided']:,} undecided" if check["undecided"] else ""
        lines.append((f"{line}   {check['title']}", bool(check["failed"])))
    return lines


def facts(predicate: dict[str, Any], report: Path | None) -> list[tuple[str, str]]:
    """What was judged, how much of it, what was not, and where to read on."""
    coverage, tensors = predicate["coverage"], predicate["tensors"]
    told = ", ".join(f"{count:,} {kind}" for kind, count in tensors.items() if count)
    lines = [("judged", f"{coverage['run']:,} of {coverage['expected']:,} subjects"), ("tensors", told or "none")]
    for role in ("base", "merged"):
        side = predicate[role]
        lines.append((role, f"{printable(side['name'])}   {figure(side['files'])} files, {human(side['bytes'])}"))
    for adapter in predicate["adapters"]:
        claimed = "   claimed by the manifest" if adapter["claimed"] else ""
        used = f"{adapter['consumed']:,} of {adapter['tensors']:,} tensors used, weight {figure(adapter['weight'])}"
        lines.append(("adapter", f"{printable(adapter['name'])}   {used}{claimed}"))
    declared = Counter((item["code"], item["pattern"], item["reason"], item["owner"]) for item in predicate["accepted"])
    for (code, pattern, reason, owner), count in declared.items():
        lines.append(("accepted", printable(f"{count:,} × {code} of {pattern}: {reason} ({owner})")))
    if screen := predicate["screen"]:
        told = f"{screen['state']}: {screen['touched']:,} of {screen['tensors']:,} tensors are touched; advice, no verdict"
        lines += [("screen", text) for text in [told, *map(printable, screen["findings"][:SCREENED])]]
    lines.append(("self-check", armed(predicate["self_check"])))
    lines.append(("not judged", ", ".join(f"{item['code']} {item['title']}" for item in predicate["not_judged"]) or "nothing"))
    lines.append(("report", str(report / "index.html") if report else "none; --report=DIR writes the page to sign"))
    return lines


def armed(check: dict[str, Any]) -> str:
    """armed 11/11 …: how many of the faults that were planted in this run the gate saw."""
    hidden = f", {len(check['not_armable']):,} not armable" if check["not_armable"] else ""
    return f"armed {check['armed']:,}/{check['planted']:,}{hidden}, {check['hypothesis_examples']:,} examples agree with PEFT"
