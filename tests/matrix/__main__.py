"""`python -m tests.matrix [--family F] [--feature X] [--write]`: the whole table, in process; exit code 1 if a cell is wrong."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from merge.errors import MergeError
from tests.matrix import cell, table


def main() -> int:
    """Run the cells that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("--family")
    parser.add_argument("--feature")
    parser.add_argument("--write", action="store_true", help="write the support table, and README's, if every cell is right")
    asked = parser.parse_args()
    began, counts, wrong = time.monotonic(), {"merged": 0, "refused": 0}, 0
    with tempfile.TemporaryDirectory() as room:
        for family, feature, refused in table.cells():
            if asked.family in (None, family) and asked.feature in (None, feature):
                try:
                    line = cell.refused(family, feature, refused, Path(room)) if refused else cell.run(family, feature, Path(room))
                    counts["refused" if refused else "merged"] += 1
                except (AssertionError, MergeError) as error:
                    wrong, line = wrong + 1, f"WRONG  {error}"
                print(f"{family:14s} {feature:18s} {line}", flush=True)
    print(
        f"{counts['merged']} cells merged, {counts['refused']} refused as the table says, {wrong} wrong, {time.monotonic() - began:.0f} s"
    )
    if asked.write and not wrong and not asked.family and not asked.feature:
        table.SUPPORT.write_text(table.text())
        table.README.write_text(table.readme())
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
