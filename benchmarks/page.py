"""The page about 91,991 tensors with planted faults: `python -m benchmarks.page [--seed N] [--faults 7] [--out DIR]`.

Prints the sizes of the report's files and, where there is a Chromium, how long the page takes to open and what it holds. DIR gets the
report, screenshots from which the faults can be named, and answers.txt, which whoever names them should not have read.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.page_case import Story, certificate
from benchmarks.page_faults import FAULTS, plant
from certify import report
from tests.test_certify.page_browser import CHROMIUM, browser

SECONDS_MAX, BYTES_MAX, JUNIT_MAX = 3.0, 5e6, 30e6


def main() -> int:
    """Exit code 1 if the page is larger or slower than promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=7, choices=range(len(FAULTS) + 1), metavar=f"0…{len(FAULTS)}")
    parser.add_argument("--out", type=Path, default=Path("reports/page"))
    options = parser.parse_args()
    out = options.out.resolve()
    story = Story(options.seed)
    answers = plant(story, options.faults)
    with tempfile.TemporaryDirectory() as room:
        made = certificate(story, Path(room))
    report.write(made, made.findings, out)
    (out / "answers.txt").write_text("\n".join(answers) + "\n")
    print(f"{len(story.names):,} tensors, {len(answers)} faults, {made.verdict}")
    sizes = {name: (out / name).stat().st_size for name in report.NAMES}
    print("\n".join(f"  {name:17} {size:>11,} bytes" for name, size in sizes.items()))
    slow = CHROMIUM is not None and _measured(out) > SECONDS_MAX
    return int(slow or sizes[report.PAGE] > BYTES_MAX or sizes[report.JUNIT] > JUNIT_MAX)


def _measured(out: Path) -> float:
    """Seconds until the page is loaded and drawn, the slowest of three; leaves the screenshots."""
    with browser() as (page, _):
        taken = [page.open(out / report.PAGE) for _ in range(3)]
        memory = page.memory()
        page.picture(out / "first.png")
        page.picture(out / "whole.png", whole=True)
        sheets = page.print(out / "page.pdf")
        said, asked = page.said, [address for address in page.asked if not address.startswith("file:")]
    print(f"  opens in {max(taken):.2f} s (at most {SECONDS_MAX:.0f}), {memory['Nodes']:,} nodes, prints to {sheets} pages")
    print(f"  {len(said)} console messages, {len(asked)} requests to elsewhere")
    return max(taken)


if __name__ == "__main__":
    sys.exit(main())
