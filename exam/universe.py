"""The gate over the whole table: `python -m exam.universe [--family F] [--feature X] [--level L] [--faults | --faithful]`.

What the engine merges must be certified, and with --faults every planted fault must be rejected. Every cell has a base by transformers, an
adapter by PEFT (or written by disk names), and the engine's merge of them, which tests.matrix holds against its own float64 reference.
With --faithful that merge is made anew, rounded to bf16 by `faithful`, and judged by that criterion.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import certify
import merge
from certify.verdict import Certificate
from exam.universe_faults import planted
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
    faithful: bool = False

    @property
    def weights(self) -> tuple[float, ...]:
        return WEIGHTS if len(self.adapters) == 2 else ()

    def judged(self, level: str, merged: Path | None = None) -> Certificate:
        declared = {"criterion": "faithful", "output_dtype": "bf16"} if self.faithful else {}
        return certify.judge(self.base, self.adapters, merged or self.merged, weights=self.weights, level=level, **declared)

    def rounded(self) -> "Cell":
        """The same cell in bf16, rounded by `faithful`."""
        out = self.merged.with_name("faithful")
        merge.merge(self.base, self.adapters, out, weights=self.weights, output_dtype="bf16", rounding="faithful")
        return replace(self, merged=out, faithful=True)


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


def missed(one: Cell) -> Iterator[tuple[str, Certificate]]:
    """(fault, certificate) for every fault planted in a cell; a right gate rejects them all."""
    out = one.merged.with_name("fault")
    for name in planted(one.feature, one.base, one.merged, one.adapters, out):
        yield name, one.judged("weights", out)


def main() -> int:
    """Exit code 1 where a right merge is rejected, or a fault is not."""
    parser = argparse.ArgumentParser(prog="python -m exam.universe")
    parser.add_argument("--family")
    parser.add_argument("--feature")
    parser.add_argument("--level", default="modules")
    parser.add_argument("--faults", action="store_true", help="plant the feature's faults in every cell as well")
    parser.add_argument("--faithful", action="store_true", help="judge a merge that `faithful` rounded to bf16")
    asked = parser.parse_args()
    if asked.faithful and asked.faults:
        parser.error("the faults are planted in float32")
    began, verdicts, seen = time.monotonic(), defaultdict[str, Counter[str]](Counter), Counter[str]()
    with tempfile.TemporaryDirectory() as room:
        for family, feature in merging(asked.family, asked.feature):
            one = made(family, feature, Path(room))
            one = one.rounded() if asked.faithful else one
            certificate = one.judged(asked.level)
            verdicts[feature][certificate.verdict.value] += 1
            told = certificate.reason if certificate.exit_code else ""
            print(f"{family:14s} {feature:18s} {certificate.verdict.value:10s} {told}", flush=True)
            for fault, found in missed(one) if asked.faults else ():
                seen[found.verdict.value] += 1
                if found.exit_code != 1:
                    print(f"{family:14s} {feature:18s} MISSED     {fault}: {found.verdict.value} {found.reason}", flush=True)
            shutil.rmtree(one.merged.parent)
    for feature, counts in verdicts.items():
        print(f"{feature:18s} " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    total = sum(verdicts.values(), Counter[str]())
    faults = f"; {sum(seen.values())} faults: {dict(seen)}" if asked.faults else ""
    print(f"{sum(total.values())} cells: {dict(total)}{faults}, {time.monotonic() - began:.0f} s")
    return int(total["REJECTED"] + total["ERROR"] + sum(seen.values()) - seen["REJECTED"] > 0)


if __name__ == "__main__":
    sys.exit(main())
