"""`python -m exam.table`: every planted fault on every bench it belongs to, judged through files on disk, as one table.

Exits 1 if a fault passes in silence, if one is never caught, or if the gate refuses the sound merge that a fault was planted in.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import transformers

import certify
from certify.verdict import Verdict
from exam.faults import FAULTS
from exam.grid import DTYPES, FAMILIES, SIZES, bench
from exam.sitting import Cell, sit

MARKS = {"caught": "", "undecided": "u", "not interpreted": "n", "inside": "i", "vacuous": "v", "silent": "SILENT"}
RIGHT = ("caught", "undecided", "not interpreted")  # the fault did not pass
TOLD = 200  # characters of what the gate said instead
LEGEND = (
    "Each entry: cells in which the check caught the fault, and how many of the others were u undecided (C4 decides), n not interpreted "
    "(named, and nothing certified), i inside the interval of right roundings (no fault there), v vacuous (the sound merge's bytes)."
)


def sittings(pattern: str, tell: Callable[[str], object]) -> Iterator[Cell | str]:
    """Every cell, bench after bench, each told before it begins.

    Where the gate refuses the sound merge, nothing that it catches means anything: a sentence stands for the cells of that bench.
    """
    with tempfile.TemporaryDirectory() as room:
        for dtype in DTYPES:
            for rho in SIZES:
                for family in FAMILIES:
                    tell(f"{dtype} {rho:g} {family}")
                    held = bench(family, dtype, rho, Path(room))
                    case = held.case
                    certificate = certify.judge(case.base, case.adapter, case.merged, level="modules", min_retention=0.0)
                    if certificate.verdict is not Verdict.CERTIFIED:
                        yield f"the sound merge of {family} in {dtype} at {rho:g} is {certificate.verdict}: {certificate.reason}"
                        continue
                    for fault in FAULTS.values():
                        if fnmatchcase(fault.name, pattern):
                            yield from sit(fault, held)


def defects(cells: Sequence[Cell]) -> list[str]:
    """What the gate, or the exam, has wrong."""
    told = [
        f"SILENT PASS  {c.fault} at {c.site} in {c.dtype}, ‖Δ‖/‖W‖ = {c.rho:g}: {c.check} does not see it: {c.told[:TOLD]}"
        for c in cells
        if c.outcome == "silent"
    ]
    seen = {(cell.fault, cell.check) for cell in cells if cell.outcome in RIGHT}
    never = sorted({(cell.fault, cell.check) for cell in cells} - seen)
    return told + [f"{fault} is caught by {check} at no size and in no dtype" for fault, check in never]


def rows(cells: Sequence[Cell]) -> Iterator[list[str]]:
    """One row per fault and check: kind, fault, check, places, then an entry per dtype and size."""
    grouped: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        grouped.setdefault((cell.kind, cell.fault, cell.check), []).append(cell)
    for key, chosen in sorted(grouped.items()):
        places = ", ".join(dict.fromkeys(cell.site for cell in chosen))
        yield [*key, places, *(_entry(c for c in chosen if (c.dtype, c.rho) == (dtype, rho)) for dtype in DTYPES for rho in SIZES)]


def _entry(cells: Iterable[Cell]) -> str:
    found = Counter(cell.outcome for cell in cells)
    others = [f"{found[outcome]}{mark}" for outcome, mark in MARKS.items() if mark and found[outcome]]
    return "+".join(([str(found["caught"])] if found["caught"] else []) + others) or "–"


def totals(cells: Sequence[Cell], seconds: float) -> list[str]:
    """A line per check, and one for all."""
    lines = [f"{check}  {_counted([c for c in cells if c.check == check])}" for check in sorted({cell.check for cell in cells})]
    pairs = {(cell.fault, cell.check) for cell in cells}
    return [*lines, f"{len(pairs)} faults × checks; {_counted(cells)}; {seconds:.0f} s"]


def _counted(cells: Sequence[Cell]) -> str:
    found = Counter(cell.outcome for cell in cells)
    return f"{len({cell.fault for cell in cells})} faults, {len(cells):,} cells: " + ", ".join(f"{o} {found[o]:,}" for o in MARKS)


def markdown(cells: Sequence[Cell], seconds: float) -> str:
    head = ["kind", "fault", "check", "places", *(f"{dtype} {rho:g}" for dtype in DTYPES for rho in SIZES)]
    lines = [head, ["---"] * len(head), *rows(cells)]
    seen = [f"* `{fault.name}`: {fault.seen}" for fault in FAULTS.values() if fault.seen]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        "\n\n".join(
            [
                "# Planted faults",
                "\n".join(f"* {line}" for line in totals(cells, seconds)),
                LEGEND,
                table,
                "## Seen in the wild",
                "\n".join(seen),
            ]
        )
        + "\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m exam.table", description="The gate's exam: planted faults × checks.")
    parser.add_argument("--json", type=Path, help="write every cell")
    parser.add_argument("--markdown", type=Path, help="write the table")
    parser.add_argument("--only", default="*", help="fnmatch pattern of faults")
    asked = parser.parse_args(arguments)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    started = time.perf_counter()
    found = list(sittings(asked.only, lambda bench: sys.stderr.write(f"{time.perf_counter() - started:5.0f} s  {bench}\n")))
    seconds = time.perf_counter() - started
    cells = [one for one in found if isinstance(one, Cell)]
    wrong = [one for one in found if isinstance(one, str)] + defects(cells)
    if asked.json:
        asked.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=1, ensure_ascii=False) + "\n")
    if asked.markdown:
        asked.markdown.write_text(markdown(cells, seconds))
    out = [_line(row) for row in rows(cells)]
    sys.stdout.write("\n".join([LEGEND, "", *out, "", *wrong, "", *totals(cells, seconds)]) + "\n")
    return 1 if wrong or not cells else 0


def _line(row: list[str]) -> str:
    _, fault, check, _, *entries = row
    sizes = len(SIZES)
    groups = [" ".join(f"{entry:>5}" for entry in entries[start : start + sizes]) for start in range(0, len(entries), sizes)]
    return f"{fault:<48} {check}  " + "   ".join(f"{dtype} {group}" for dtype, group in zip(DTYPES, groups, strict=True))


if __name__ == "__main__":
    raise SystemExit(main())
