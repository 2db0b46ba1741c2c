"""A gate that is killed, again and again: `python benchmarks/kill_gate.py [KILLS]`.

Each time the gate is started on the 61-layer proxy, killed with SIGKILL when a random number of shards is judged, a moment later, and asked
again with the same command. The second run takes up the journal of the first and must write the certificate of a gate that nobody killed.
Exits with 1 if it does not, or if fewer than half of the gates died in the middle of their shards.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import merge
from merge.proxies import make_adapter, make_checkpoint

LEVEL = "modules"
MOMENT = 0.02  # seconds at most between a shard's evidence and the kill


def gate(room: Path, report: str) -> list[str]:
    """The command, without the launcher: a signal then reaches the judging process itself."""
    from certify.launch import arguments

    options = [f"--base={room / 'base'}", f"--adapter={room / 'adapter'}", f"--merged={room / 'merged'}", f"--level={LEVEL}"]
    return [sys.executable, "-P", "-m", "certify.launch", *arguments([*options, f"--report={room / report}"])]


def shards_kept(report: Path) -> int:
    """Shards whose evidence is in the journal."""
    journal = report / "evidence.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def killed(room: Path, shards: int, moment: float) -> int:
    """How many shards were kept by a gate that was killed a moment after it had kept so many; all of them if it was done before."""
    shutil.rmtree(room / "report", ignore_errors=True)
    process = subprocess.Popen(gate(room, "report"), stdout=subprocess.DEVNULL)
    while process.poll() is None and shards_kept(room / "report") < shards:
        time.sleep(0.001)
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return shards_kept(room / "report")


def certificate(report: Path) -> dict[str, Any]:
    """What was written there, but for the command."""
    found: dict[str, Any] = json.loads((report / "certificate.json").read_text())
    found["predicate"].pop("command")
    return found


def main(kills: int) -> int:
    """Prints a line per kill; the exit code."""
    chance, different, midway = random.Random(0), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        os.environ["XDG_STATE_HOME"] = folder  # the key of these gates
        make_checkpoint("deepseek-v3", room / "base", layers=61)
        make_adapter(room / "base", room / "adapter")
        merge.merge(room / "base", room / "adapter", room / "merged")
        began = time.monotonic()
        subprocess.run(gate(room, "whole"), stdout=subprocess.DEVNULL, check=True)
        expected, shards = certificate(room / "whole"), shards_kept(room / "whole")
        print(f"whole run {time.monotonic() - began:.1f} s, {shards} shards", flush=True)
        for number in range(1, kills + 1):
            kept = killed(room, chance.randrange(1, shards), chance.uniform(0, MOMENT))
            midway += kept < shards
            subprocess.run(gate(room, "report"), stdout=subprocess.DEVNULL, check=True)
            same = certificate(room / "report") == expected
            different += not same
            print(f"{number:>3}  killed, {kept} of {shards} shards kept: {'the same' if same else 'ANOTHER'} certificate", flush=True)
    print(f"{kills - different} of {kills} certificates the same; {midway} gates killed before their last shard")
    return int(different > 0 or midway < kills / 2)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
