"""Everything in reports/sample: `python -m docs.sample` runs the commands that the README shows, and keeps what they print and write.

A proxy of DeepSeek-V3 is merged and judged: terminal.svg, the report, its page as a picture in light and dark. The page of the published
checkpoint's 91,991 tensors with seven planted faults: two pictures. Pictures of pages need Chromium; without it the old ones stay.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from certify.report import NAMES, PAGE
from tests.test_certify.page_browser import CHROMIUM, Page, browser

SAMPLE = Path(__file__).parents[1] / "reports" / "sample"
PREPARE = (
    "lora-merge proxy --family deepseek-v3 --out DeepSeek-V3",
    "lora-merge proxy-adapter --base DeepSeek-V3 --out adapter",
)
SHOWN = (
    "lora-merge run --base DeepSeek-V3 --adapter adapter --out merged",
    "lora-certify run --base=DeepSeek-V3 --adapter=adapter --merged=merged --report=report",
)
MODULES = {"lora-merge": "merge", "lora-certify": "certify"}
COLUMNS, SCREEN = 119, (1000, 800)  # of the terminal; pixels
FETCHED = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # rich names a font on a server; a picture in a repository asks nobody
MAPS = "[...document.querySelectorAll('h2')].find(title => title.innerText.startsWith('Layers of')).scrollIntoView()"


def output(command: str, room: Path) -> str:
    """What a command prints, in colour. Raises CalledProcessError if it fails."""
    name, *words = shlex.split(command)
    colour = {"FORCE_COLOR": "1"} if name == "lora-certify" else {}  # of the engine, rich would draw its progress bar as well
    words = [sys.executable, "-m", MODULES[name], *words]
    end = subprocess.run(words, cwd=room, env=os.environ | colour, check=True, stdout=subprocess.PIPE, text=True)
    return end.stdout.rstrip().replace(f"{room}/", "")


def terminal(room: Path) -> str:
    """The commands and what they print, as a picture."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
        for command in SHOWN:
            console.print(Text(f"$ {command}", style="bold"), Text.from_ansi(output(command, room)), "", sep="\n")
        return FETCHED.sub("", console.export_svg(title="mergegate", unique_id="terminal"))


def merged_and_judged(room: Path) -> None:
    """The terminal, and the report without the paths of this machine."""
    for command in PREPARE:
        output(command, room)
    (SAMPLE / "terminal.svg").write_text(terminal(room), encoding="utf-8")
    for name in NAMES:
        (SAMPLE / name).write_text((room / "report" / name).read_text(encoding="utf-8").replace(f"{room}/", ""), encoding="utf-8")


def pictures(tab: Page, faults: Path) -> None:
    """First screens, and the maps of the page with faults."""
    for name, dark in (("page.png", False), ("page-dark.png", True)):
        tab.open(SAMPLE / PAGE, *SCREEN, dark=dark)
        tab.picture(SAMPLE / name)
    tab.open(faults, *SCREEN)
    tab.picture(SAMPLE / "faults-1.png")
    tab.value(MAPS)
    tab.picture(SAMPLE / "faults-2.png")


def main() -> None:
    """Make the sample again."""
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder).resolve()
        merged_and_judged(room)
        if CHROMIUM is not None:
            subprocess.run([sys.executable, "-m", "benchmarks.page", "--seed=1", f"--out={room / 'faults'}"], check=True)
            with browser() as (tab, _):
                pictures(tab, room / "faults" / PAGE)


if __name__ == "__main__":
    main()
