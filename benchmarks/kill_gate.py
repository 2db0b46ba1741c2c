"""A gate that is killed, again and again: `python benchmarks/kill_gate.py [KILLS]`.

Each time the gate is started on the 61-layer proxy, killed with SIGKILL at a random moment, and asked again with the same command. The
second run takes up the journal of the first and must write the certificate of a gate that nobody killed. Exits with 1 if it does not.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import merge
from merge.proxies import make_adapter, make_checkpoint

LEVEL = "modules"


def gate(room: Path, report: str) -> list[str]:
    """The command, without the launcher: a signal then reaches the judging process itself."""
    from certify.launch import arguments

    options = [f"--base={room / 'base'}", f"--adapter={room / 'adapter'}", f"--merged={room / 'merged'}", f"--level={LEVEL}"]
    return [sys.executable, "-P", "-m", "certify.launch", *arguments([*options, f"--report={room / report}"])]


def shards_kept(report: Path) -> int:
    """Shards whose evidence is in the journal."""
    journal = report / "evidence.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def main(kills: int) -> int:
    """Prints a line per kill; the number of certificates that differ decides the exit code."""
    chance, different = random.Random(0), 0
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        make_checkpoint("deepseek-v3", room / "base", layers=61)
        make_adapter(room / "base", room / "adapter")
        merge.merge(room / "base", room / "adapter", room / "merged")
        began = time.monotonic()
        subprocess.run(gate(room, "whole"), stdout=subprocess.DEVNULL, check=True)
        seconds = time.monotonic() - began
        expected = json.loads((room / "whole" / "certificate.json").read_text())
        expected["predicate"].pop("command")
        print(f"whole run {seconds:.1f} s, {shards_kept(room / 'whole')} shards")
        for number in range(kills):
            shutil.rmtree(room / "report", ignore_errors=True)
            process = subprocess.Popen(gate(room, "report"), stdout=subprocess.DEVNULL)
            after = chance.uniform(0.2, 1.0) * seconds
            time.sleep(after)
            process.send_signal(signal.SIGKILL)
            killed, kept = process.wait() == -signal.SIGKILL, shards_kept(room / "report")
            subprocess.run(gate(room, "report"), stdout=subprocess.DEVNULL, check=True)
            found = json.loads((room / "report" / "certificate.json").read_text())
            found["predicate"].pop("command")
            different += found != expected
            outcome = "the same certificate" if found == expected else "ANOTHER CERTIFICATE"
            print(f"{number + 1:>3}  {'killed' if killed else 'done'} after {after:5.1f} s, {kept} shards kept: {outcome}", flush=True)
    print(f"{kills - different} of {kills} the same")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
