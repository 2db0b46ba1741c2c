"""deltalint 0.1.0 and this gate on the same merges, as a table. `python -m exam.opponent [--markdown FILE] [--pairs N]`.

FILE: what stands between the two marks in it is replaced, or it is written anew. N > 0: also the time and the peak memory of both command
lines on a checkpoint of 1 GB, in N alternating pairs; the medians go into the table.
"""

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

import merge
from exam import duel
from exam.duel import CONDITIONS, Score
from exam.faults import FAULTS

BEGIN, END = "<!-- exam.opponent: begin -->", "<!-- exam.opponent: end -->"
CAUSES = 12  # causes of faults that this gate must name, at each size of delta
SHAPED = Path(__file__).parents[1] / "benchmarks" / "shaped.py"
SHAPE = ("3", "4096", "14336")  # layers, hidden, intermediate: 1.2 GB
Scores = Mapping[str, Mapping[tuple[str, float], Score]]
Sound = Mapping[str, Mapping[str, Counter[str]]]


def main() -> int:
    """Exit code: 1 if deltalint refuses a fault that this gate certifies, on any false alarm of ours, or if too few causes are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--pairs", type=int, default=0)
    options = parser.parse_args()
    if importlib.util.find_spec("deltalint") is None:
        print("deltalint is not installed: pip install --no-deps deltalint==0.1.0")
        return 2
    print("Some 2,000 merges, each judged twice: this takes minutes. Complaints of MKL come from deltalint, where a tensor holds NaN.")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="exam-opponent-") as room:
        root = Path(room)
        speed = list(_speed(root / "speed", options.pairs)) if options.pairs else []
        torch.set_num_threads(1)
        sound, scores = duel.sound_merges(root / "sound"), duel.faults(root / "faults")
    text = "\n".join([BEGIN, *_sound(sound), "", *_faults(scores), "", *_causes(scores), *_timing(speed), "", *_details(scores), END])
    if options.markdown:
        _write(options.markdown, text)
    print(text)
    problems = _problems(sound, scores)
    print(f"{time.monotonic() - began:.0f} s; " + ("; ".join(problems) or "no fault that deltalint refuses is certified, no false alarm"))
    return 1 if problems else 0


def _problems(sound: Sound, scores: Scores) -> list[str]:
    lost = [f"{name} {dtype} {rho:g}" for name, found in scores.items() for (dtype, rho), score in found.items() if score.only_theirs]
    told = [f"only deltalint refuses {where}" for where in lost]
    told += [f"false alarm on {row}" for row, said in sound.items() if said["ours"]["refused"]]
    named = {condition: len(_named(scores, condition, "ours")) for condition in CONDITIONS}
    return told + [f"{count} causes named at {condition}" for condition, count in named.items() if count < CAUSES]


def _sound(sound: Sound) -> Iterator[str]:
    yield "**Sound merges refused** (each is right by construction; in bf16, fp16 and fp32)"
    yield ""
    yield "| producer | merges | deltalint: refused | crash | cannot judge | certify: refused |"
    yield "|---|---|---|---|---|---|"
    for producer, said in sound.items():
        theirs = said["theirs"]
        other = theirs["inconclusive"] + theirs["unreadable"]
        row = (theirs.total(), theirs["refused"], theirs["crash"], other, said["ours"]["refused"])
        yield f"| {producer} | {' | '.join(map(str, row))} |"


def _heads() -> str:
    return " | ".join(f"{dtype}, ρ = {rho:g}" for dtype, rho in CONDITIONS)


def _faults(scores: Scores) -> Iterator[str]:
    """Kind by kind: refused of planted, deltalint's first."""
    yield f"**Faults refused**, of {len(FAULTS)} kinds: deltalint / certify / planted; `+n` ended without a verdict, and named why"
    yield ""
    yield f"| faults | {_heads()} |"
    yield "|---|---|---|---|"
    for kind in dict.fromkeys(fault.kind for fault in FAULTS.values()):
        names = [name for name, fault in FAULTS.items() if fault.kind == kind]
        yield f"| {kind} | {' | '.join(_cell([scores[name][c] for name in names if c in scores[name]]) for c in CONDITIONS)} |"
    everything = [_cell([found[c] for found in scores.values() if c in found]) for c in CONDITIONS]
    yield f"| **all** | {' | '.join(everything)} |"


def _cell(scores: list[Score]) -> str:
    trials = sum(score.trials for score in scores)
    return f"{_told(score.theirs for score in scores)} / {_told(score.ours for score in scores)} / {trials}" if trials else "–"


def _told(said: Iterable[Counter[str]]) -> str:
    """How many were refused, and how many ended without a verdict: `refused+others`."""
    total = sum(said, Counter[str]())
    others = total.total() - total["refused"] - total["pass"]
    return f"{total['refused']}+{others}" if others else f"{total['refused']}"


def _named(scores: Scores, condition: tuple[str, float], tool: str) -> set[str]:
    """The causes that a tool names rightly in more than half of the adapted tensors where a fault of theirs is planted."""
    right: dict[str, bool] = {}
    for name, found in scores.items():
        cause, score = FAULTS[name].cause, found.get(condition)
        if cause and score and score.adapted:
            right[cause] = right.get(cause, False) or score.named[tool] * 2 > score.adapted
    return {cause for cause, always in right.items() if always}


def _causes(scores: Scores) -> Iterator[str]:
    yield "**Causes named rightly** in most of the adapted tensors where a fault of theirs is planted"
    yield ""
    yield f"| of {len({fault.cause for fault in FAULTS.values() if fault.cause})} | {_heads()} |"
    yield "|---|---|---|---|"
    for tool, key in (("deltalint", "theirs"), ("certify", "ours")):
        yield f"| {tool} | {' | '.join(str(len(_named(scores, condition, key))) for condition in CONDITIONS)} |"
    never = {fault.cause for fault in FAULTS.values() if fault.cause}.difference(*(_named(scores, c, "ours") for c in CONDITIONS))
    yield ""
    yield f"Never named by certify: {', '.join(sorted(never)) or 'none'}."


def _details(scores: Scores) -> Iterator[str]:
    yield "<details><summary>every fault: deltalint / certify / planted</summary>"
    yield ""
    yield f"| fault | {_heads()} |"
    yield "|---|---|---|---|"
    for name, found in scores.items():
        yield f"| {name.replace('_', ' ')} | {' | '.join(_cell([found[c]] if c in found else []) for c in CONDITIONS)} |"
    yield ""
    yield "</details>"


def _speed(room: Path, pairs: int) -> Iterator[dict[str, tuple[float, float]]]:
    """Per pair: tool → (wall seconds, peak MiB) of its command line, in turns; the files are in the page cache."""
    room.mkdir()
    subprocess.run([sys.executable, str(SHAPED), str(room), *SHAPE], check=True)
    base, adapter, merged = room / "base", room / "adapter", room / "merged"
    merge.merge(base, adapter, merged)
    folders = [f"--base={base}", f"--adapter={adapter}", f"--merged={merged}"]
    commands = {
        "deltalint": [sys.executable, "-m", "deltalint.cli", "check", *folders],
        "certify": [sys.executable, "-m", "certify", "run", *folders, "--level=weights"],
    }
    for number in range(pairs + 1):  # the first one warms the page cache
        found = {tool: _timed(commands[tool]) for tool in (commands if number % 2 else reversed(commands))}
        if number:
            yield found


def _timed(command: list[str]) -> tuple[float, float]:
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(command)}")
    return time.monotonic() - began, usage.ru_maxrss / 1024


def _timing(speed: list[dict[str, tuple[float, float]]]) -> Iterator[str]:
    if speed:
        yield ""
        cores = len(os.sched_getaffinity(0))
        yield f"**A checkpoint of 1.2 GB, level `weights`**: medians of {len(speed)} alternating pairs on {cores} cores"
        yield ""
        yield "| | wall | peak memory |"
        yield "|---|---|---|"
        for tool in speed[0]:
            wall, peak = (statistics.median(pair[tool][place] for pair in speed) for place in (0, 1))
            yield f"| {tool} | {wall:.1f} s ({', '.join(f'{pair[tool][0]:.1f}' for pair in speed)}) | {peak:.0f} MiB |"


def _write(path: Path, text: str) -> None:
    before = path.read_text() if path.exists() else ""
    head, mark, rest = before.partition(BEGIN)
    path.write_text(head + text + rest.partition(END)[2] if mark else text + "\n")


if __name__ == "__main__":
    sys.exit(main())
