"""`python -m exam.giants [--only PATTERN] [--level L] [--sound | --faults]`: both tables. Exit code 1 for an alarm or a silent pass."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
import transformers

import exam.giants.faults  # noqa: F401 enters them
from certify.verdict import Verdict
from exam.giants.bench import MADE, PROXIES, WAYS, Shelf
from exam.giants.scene import FAULTS
from exam.giants.sitting import alarm, planted
from exam.giants.tools import TOOLS


def sound(shelf: Shelf, pattern: str, level: str) -> Iterator[bool]:
    """A line for each sound merge; whether the gate certified it."""
    for proxy in (*PROXIES, *MADE):
        for way in (*WAYS, *TOOLS.get(proxy, ())):
            if fnmatchcase(f"{proxy} {way}", pattern):
                began = time.perf_counter()
                told = alarm(shelf, proxy, way, level)
                _tell(f"{proxy:24} {way!s:32} {time.perf_counter() - began:5.1f} s  {told or Verdict.CERTIFIED}")
                yield not told


def faults(shelf: Shelf, pattern: str) -> Iterator[bool]:
    """A line for each fault and check; whether the check caught it."""
    for fault in FAULTS:
        for check, caught, told in planted(shelf, fault) if fnmatchcase(fault.name, pattern) else ():
            _tell(f"{fault.name:44} {fault.proxy:24} {fault.way!s:20} {check}  {'caught' if caught else 'SILENT'}  {told}")
            yield caught


def main(arguments: Sequence[str] | None = None) -> int:
    """Both tables, and what they come to."""
    parser = argparse.ArgumentParser(prog="python -m exam.giants", description="The gate's exam on quantised bases.")
    parser.add_argument("--only", default="*", help="fnmatch pattern of sound merges (proxy way) or faults")
    parser.add_argument("--level", default="layers", help="of the sound merges")
    parser.add_argument("--sound", action="store_true", help="no faults")
    parser.add_argument("--faults", action="store_true", help="no sound merges")
    asked = parser.parse_args(arguments)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # on matrices this small, threads wait for each other longer than they work
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as room:
        shelf = Shelf(Path(room))
        certified = [] if asked.faults else list(sound(shelf, asked.only, asked.level))
        caught = [] if asked.sound else list(faults(shelf, asked.only))
    _tell(f"sound merges {len(certified)}, alarms {certified.count(False)}")
    _tell(f"faults × checks {len(caught)}, silent {caught.count(False)}; {time.perf_counter() - began:.0f} s")
    return int(not all((*certified, *caught)) or not (certified or caught))


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
