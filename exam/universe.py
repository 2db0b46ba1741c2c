"""The gate over the whole table of family × feature: what the engine merges must be certified. `python -m exam.universe [--family F] [--feature X]`.

Every cell has a base by transformers, an adapter by PEFT (or written by disk names), and the engine's merge of them, which tests.matrix
holds against its own float64 reference. The gate then judges it at --level; the table says certified, incomplete (why) or rejected.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import certify
from certify.verdict import Certificate
from tests.matrix import cell, table, trial
from tests.matrix.families import FAMILIES
from tests.matrix.features import FEATURES

WEIGHTS = (0.7, -0.4)  # of the table's two adapters


@dataclass(frozen=True)
class Cell:
    """One merged cell on disk."""

    family: str
    feature: str
    base: Path
    adapters: tuple[Path, ...]
    merged: Path

    @property
    def weights(self) -> tuple[float, ...]:
        return WEIGHTS if len(self.adapters) == 2 else ()

    def judged(self, level: str, merged: Path | None = None) -> Certificate:
        return certify.judge(self.base, self.adapters, merged or self.merged, weights=self.weights, level=level)


def made(family: str, feature: str, room: Path) -> Cell:
    """The cell, merged by the engine in `room`. Raises AssertionError where the table's own reference refuses the merge."""
    base, work = trial.make_base(family, room), room / f"{family}-{feature}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    if feature in FEATURES:
        cell._option(family, FEATURES[feature](FAMILIES[family]) or {}, base, work)
    else:
        cell.PRODUCERS[feature](family, base, work)
    return Cell(family, feature, base, tuple(sorted(work.glob("adapter*"))), work / "merged")


def merging(family: str | None, feature: str | None) -> Iterator[tuple[str, str]]:
    """The cells that merge."""
    for one, other, refused in table.cells():
        if refused is None and family in (None, one) and feature in (None, other):
            yield one, other


def main() -> int:
    """Exit code 1 where a right merge is rejected."""
    parser = argparse.ArgumentParser(prog="python -m exam.universe")
    parser.add_argument("--family")
    parser.add_argument("--feature")
    parser.add_argument("--level", default="modules")
    asked = parser.parse_args()
    began, verdicts, why = time.monotonic(), defaultdict[str, Counter[str]](Counter), defaultdict[str, list[str]](list)
    with tempfile.TemporaryDirectory() as room:
        for family, feature in merging(asked.family, asked.feature):
            one = made(family, feature, Path(room))
            certificate = one.judged(asked.level)
            verdicts[feature][certificate.verdict.value] += 1
            if certificate.exit_code:
                why[feature].append(f"{family}: {certificate.verdict.value} {certificate.reason}")
            print(
                f"{family:14s} {feature:18s} {certificate.verdict.value:10s} {certificate.reason if certificate.exit_code else ''}",
                flush=True,
            )
            shutil.rmtree(one.merged.parent)
    for feature, counts in verdicts.items():
        print(f"{feature:18s} " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    total = sum(verdicts.values(), Counter[str]())
    print(f"{sum(total.values())} cells: {dict(total)}, {time.monotonic() - began:.0f} s")
    return int(total["REJECTED"] + total["ERROR"] > 0)


if __name__ == "__main__":
    sys.exit(main())
