"""What C9 alone sees of faults in a decoder layer: family × fault × size of delta, caught, undecided or passed; and sound merges.

python -m exam.layers [family …]      exits 1 if a fault passes, a sound merge is refused, or fewer than 90 % of the faults are caught
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import certify
from certify.errors import CertifyError
from certify.finding import Finding, Outcome
from certify.verdict import Verdict
from tests.test_certify.layer_cases import FAMILIES, Case, behaviour, make
from tests.test_certify.layer_faults import faults, told

SIZES = (3e-1, 1e-1, 1e-2)  # ‖Δ‖/‖W‖
LEAST = 0.9  # share of the faults that C9 must catch on its own
SOUND = "no fault"


@dataclass(frozen=True, slots=True)
class Cell:
    """One merge. told: caught, undecided or passed by C9; others: for an undecided one, the codes that catch it instead."""

    family: str
    fault: str
    size: float
    told: str
    K: object
    live: float
    others: tuple[str, ...] = ()


def cells(family: str, room: Path) -> Iterator[Cell]:
    """Every cell of one family."""
    for size in SIZES:
        case = make(family, size, room)
        case.write(case.sound())
        yield _cell(case, family, SOUND, size)
        for fault, plant in faults(family).items():
            tensors = case.sound()
            plant(case, tensors)
            case.write(tensors)
            yield _cell(case, family, fault, size)


def _cell(case: Case, family: str, fault: str, size: float) -> Cell:
    layers = behaviour(case)
    findings = [finding for unit in layers.units for finding in layers.examine(unit)]
    verdict = told(case, findings)
    others = _others(case) if fault != SOUND and verdict == "undecided" else ()
    return Cell(family, fault, size, verdict, _figures(case, findings).get("K"), layers.peak / layers.largest_layer, others)


def _figures(case: Case, findings: Sequence[Finding]) -> dict[str, object]:
    return next(dict(finding.figures) for finding in findings if finding.subject == case.family.layer)


def _others(case: Case) -> tuple[str, ...]:
    """Which checks refuse what C9 could not tell."""
    certificate = certify.judge(case.base, case.adapter, case.merged, level="modules")
    if certificate.verdict is Verdict.ERROR:
        raise CertifyError(certificate.reason)
    return tuple(sorted({finding.code for finding in certificate.findings if finding.outcome is Outcome.FAILED}))


def heading() -> str:
    """What the columns are."""
    return f"{'family':12} {'fault':32}" + "".join(f"{size:>24.0e}" for size in SIZES)


def rows(made: Sequence[Cell]) -> str:
    """A line per family and fault, a column per size."""
    lines = []
    for family, fault in dict.fromkeys((cell.family, cell.fault) for cell in made):
        row = [cell for cell in made if (cell.family, cell.fault) == (family, fault)]
        lines.append(f"{family:12} {fault:32}" + "".join(f"{_shown(cell):>24}" for cell in row))
    return "\n".join(lines)


def totals(made: Sequence[Cell]) -> str:
    """How many were caught, what C9 could not tell and who could, and how many numbers were alive at once."""
    planted = [cell for cell in made if cell.fault != SOUND]
    counts = Counter(cell.told for cell in planted)
    sound = Counter(cell.told for cell in made if cell.fault == SOUND)
    share = counts["caught"] / len(planted)
    lines = [
        f"faults  {len(planted)}: caught {counts['caught']} ({share:.1%}), undecided {counts['undecided']}, passed {counts['passed']}",
        f"sound   {sum(sound.values())}: passed {sound['passed']}, undecided {sound['undecided']}, refused {sound['caught']}",
        f"live    numbers at once: at most {max(cell.live for cell in made):.2f} × the largest layer",
        *(f"undecided: {c.family}, {c.fault}, {c.size:.0e}: refused by {', '.join(c.others)}" for c in planted if c.told == "undecided"),
    ]
    return "\n".join(lines)


def _shown(cell: Cell) -> str:
    return f"{cell.told}  K {cell.K:.2g}" if isinstance(cell.K, float) else cell.told


def sufficient(made: Sequence[Cell]) -> bool:
    """No fault passes, no sound merge is refused, C9 catches its share, and what it cannot tell another check refuses."""
    planted = [cell for cell in made if cell.fault != SOUND]
    caught = sum(cell.told == "caught" for cell in planted)
    silent = any(cell.told == "passed" or (cell.told == "undecided" and not cell.others) for cell in planted)
    return not silent and caught >= LEAST * len(planted) and all(cell.told != "caught" for cell in made if cell.fault == SOUND)


def main(families: Sequence[str]) -> int:
    """Prints the table, family by family; returns the exit code."""
    torch.set_num_threads(1)  # on matrices this small, threads wait for each other longer than they work
    made: list[Cell] = []
    _tell(heading())
    with tempfile.TemporaryDirectory(prefix="exam-layers-") as room:
        for family in families or tuple(FAMILIES):
            found = list(cells(family, Path(room)))
            _tell(rows(found))
            made += found
    _tell(f"\n{totals(made)}")
    return 0 if sufficient(made) else 1


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
