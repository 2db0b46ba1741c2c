"""The release gate on the twin's merge, and on a copy of it in which one module was not merged: the public command, as a user has it.

The gate shares nothing with this package and is never imported here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merge import display
from merge.errors import MergeError
from merge.operation import Operation
from merge.runners.inputs import Buffers, Factors, Inputs, memory_of
from merge.runners.local import made
from merge.source import Reader
from merge.storing import Rule
from merge.task import Merge

MANY = 10_000  # tensors, above which weights are judged, and layers are not
LAYER = re.compile(r"(.+?\.\d+)\.")
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
VERDICTS = {0: "CERTIFIED", 1: "REJECTED", 3: "ERROR", 4: "ERROR", 10: "INCOMPLETE"}


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the gate said of one merged directory.

    failures  (check, subject, sentence), the first few      items  that were judged
    passed, undecided  checks, by code: those that passed, and those whose outputs cannot tell a right merge from none
    """

    verdict: str
    level: str
    items: int
    passed: dict[str, int]
    undecided: dict[str, int]
    failures: tuple[tuple[str, str, str], ...]
    seconds: float

    @property
    def rejected(self) -> set[str]:
        """Subjects with a finding against them."""
        return {subject for _, subject, _ in self.failures}

    @property
    def spotless(self) -> bool:
        """True where modules or layers were run, and nothing was found against what was judged, be it all or a part of it."""
        behaved = any(found.get(code) for found in (self.passed, self.undecided) for code in ("C5", "C9"))
        return self.verdict in ("CERTIFIED", "INCOMPLETE") and not self.failures and behaved


def is_giant(work: Merge) -> bool:
    """True where there are so many tensors that not all can be asked of the gate within minutes."""
    return sum(work.plan.counts.values()) > MANY


def level(work: Merge) -> str:
    """The highest level that the gate reaches on this architecture within minutes."""
    if is_giant(work):
        return "weights"
    return "modules" if work.plan.literal else "layers"


def sample(work: Merge) -> str | None:
    """The layer of a giant whose modules are run: the first that has as many merged weights as any, and can be named by a pattern alone.

    None where all layers are run, or where there are none.
    """
    named = (LAYER.match(operation.target.name) for operation in work.plan.operations if operation.kind == "merge")
    merged = Counter(found[1] for found in named if found)
    full = [layer for layer, count in merged.items() if count == max(merged.values())]
    alone = (layer for layer in full if not any(other != layer and other.startswith(layer) for other in merged))
    return next(alone, None) if is_giant(work) else None


class Judging:
    """A gate at work on the output of a merge, in a process of its own. only  the pattern of what it is asked about"""

    def __init__(self, work: Merge, report: Path, level: str, only: str | None = None) -> None:
        more = [f"--level={level}", f"--report={report}", *([f"--only={only}"] if only else [])]
        paths = os.pathsep.join([str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])])
        self._report, self._level, self._began = report, level, time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "certify", "run", *display.certify_options(work), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": paths},
        )

    def end(self) -> Judgement:
        """Wait for the verdict; raises MergeError where the gate gave none."""
        output, _ = self._process.communicate()
        seconds, verdict = time.monotonic() - self._began, VERDICTS.get(self._process.returncode, "ERROR")
        try:
            found: dict[str, Any] = json.loads((self._report / "certificate.json").read_text())["predicate"]
        except (OSError, ValueError, KeyError) as error:
            raise MergeError(f"the gate wrote no certificate ({error}); it said:\n{output[-2000:]}") from error
        failures = tuple((f["code"], f["subject"], f["sentence"]) for f in found["failures"])
        passed, undecided = ({code: check[kind] for code, check in found["checks"].items()} for kind in ("passed", "undecided"))
        return Judgement(verdict, self._level, found["coverage"]["run"], passed, undecided, failures, seconds)

    def stop(self) -> None:
        """End a gate whose verdict nobody waits for; nothing happens to one that has ended."""
        self._process.terminate()
        self._process.wait()


def spoil(work: Merge, copy: Path) -> str:
    """A copy of the merged directory in which one weight is the base's still; its name. Raises MergeError where nothing is merged."""
    chosen = [operation for operation in work.plan.operations if operation.kind == "merge"]
    if not chosen:
        raise MergeError("the adapter replaces tensors and adds to none: there is no module that could be left unmerged")
    operation = chosen[len(chosen) // 2]
    lost = [operation, *(other for other in work.plan.operations if other.kind == "scale" and other.reads == operation.reads)]
    shutil.copytree(work.out, copy)
    readers = [Reader(folder) for folder in (work.base, *work.adapters)]
    try:
        for own in lost:
            _write(copy / own.target.file, replace(own, parts=(), passes=1), Inputs(readers[0], tuple(readers[1:])))
    finally:
        for reader in readers:
            reader.close()
    return operation.target.name


def _write(path: Path, operation: Operation, inputs: Inputs) -> None:
    """What the output would hold if nothing had been added."""
    factors, buffers = Factors(operation, inputs), Buffers()
    with path.open("r+b") as stream:
        for start, stop in operation.slabs:
            raw, _ = made(operation, factors, start, stop, buffers, inputs, Rule())
            place, _ = operation.slabs.span(operation.target, start, stop)
            stream.seek(place)
            stream.write(memory_of(raw))
