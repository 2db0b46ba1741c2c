"""The picture of a terminal in README: `python docs/terminal.py [FILE]` runs the commands that it shows and draws what they print."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURE = Path(__file__).parents[1] / "reports" / "sample" / "terminal.svg"
PREPARE = (
    "lora-merge proxy --family deepseek-v3 --out DeepSeek-V3",
    "lora-merge proxy-adapter --base DeepSeek-V3 --out adapter",
)
SHOWN = (
    "lora-merge run --base DeepSeek-V3 --adapter adapter --out merged",
    "lora-certify run --base=DeepSeek-V3 --adapter=adapter --merged=merged --report=report",
)
MODULES = {"lora-merge": "merge", "lora-certify": "certify"}
WIDTH = 119  # characters
FETCHED = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)  # rich names a font on a server; a picture in a repository asks nobody


def output(command: str, room: Path) -> str:
    """What a command prints, in colour. Raises CalledProcessError if it fails."""
    name, *words = shlex.split(command)
    colour = {"FORCE_COLOR": "1"} if name == "lora-certify" else {}  # of the engine, rich would draw its progress bar as well
    end = subprocess.run(
        [sys.executable, "-m", MODULES[name], *words], cwd=room, env=os.environ | colour, check=True, stdout=subprocess.PIPE, text=True
    )
    return end.stdout.rstrip().replace(f"{room.resolve()}/", "")


def main() -> None:
    """Write the picture."""
    picture = Path(sys.argv[1]) if sys.argv[1:] else PICTURE
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True, color_system="truecolor")  # noqa: SIM115, PTH123
    with tempfile.TemporaryDirectory() as room:
        for command in PREPARE:
            output(command, Path(room))
        for command in SHOWN:
            console.print(Text(f"$ {command}", style="bold"), Text.from_ansi(output(command, Path(room))), "", sep="\n")
    picture.write_text(FETCHED.sub("", console.export_svg(title="mergegate", unique_id="terminal")), encoding="utf-8")


if __name__ == "__main__":
    main()
