"""Independence proven: bugs planted in merge, each of whose outputs the gate must refuse. `python -m exam.bugs`."""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from exam.bugs import BUGS
from exam.bugs.trial import Trials

LEAST = 30  # bugs whose output the gate must have refused


def main() -> int:
    """Exit code: 1 if an output was certified, if a bug changed nothing, if the engine stopped by surprise, or if too few were rejected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reasons", action="store_true", help="print what the gate, or the engine, says")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="exam-bugs-") as room:
        trials, under_trial = [], Trials(Path(room))
        for bug in BUGS.values():
            trial = under_trial.run(bug)
            trials.append(trial)
            print(f"{bug.module:18s} {bug.name:32s} {trial.verdict:15s} {','.join(trial.codes):12s} {bug.sentence}", flush=True)
            if options.reasons:
                print(f"    {trial.reason}")
    counts = Counter(trial.verdict for trial in trials)
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    refused, bad = counts["REJECTED"], [trial.bug.name for trial in trials if not trial.good]
    modules = len({trial.bug.module for trial in trials})
    print(
        f"{len(trials)} bugs in {modules} modules of merge, {refused} outputs rejected, {len(bad)} slipped through, "
        f"{time.monotonic() - began:.0f} s"
    )
    if bad:
        print("not refused: " + ", ".join(bad))
    return 1 if bad or refused < LEAST else 0


if __name__ == "__main__":
    sys.exit(main())
