"""Kill a merge at random bytes inside its shards, run the same command again, compare every byte: `python benchmarks/kill.py 50`.

Each killed run is a real process that sends itself SIGKILL in the middle of the write that reaches the chosen byte, half of that
write done. The resumed run is the plain command. Exits with 1 unless every output equals the uninterrupted one and no run wrote
more than one shard's bytes again.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPED = str(Path(__file__).with_name("shaped.py"))
KILLED = """
import os, signal, sys
from merge import sink
write, left = sink.Sink.write, int(sys.argv.pop(1))
def dying(self, descriptor, data, start):
    global left
    if not os.readlink(f'/proc/self/fd/{descriptor}').endswith('.partial'):  # the journal
        return write(self, descriptor, data, start)
    if left < len(data):
        os.pwrite(descriptor, data[:left], start)
        os.kill(os.getpid(), signal.SIGKILL)
    left -= len(data)
    write(self, descriptor, data, start)
sink.Sink.write = dying
from merge.__main__ import main
main()
"""


def files(folder: Path) -> dict[str, bytes]:
    """Every file's bytes; the figures of the run are no part of the result."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "merge-run.jsonl"}


def last_run(out: Path) -> dict[str, int]:
    """The closing line of the figures."""
    found: dict[str, int] = json.loads((out / "merge-run.jsonl").read_text().splitlines()[-1])
    return found


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="mergegate-kill-") as room:
        subprocess.run([sys.executable, SHAPED, room, "10", "512", "1536"], check=True)
        base, adapter = Path(room) / "base", Path(room) / "adapter"
        command = ["run", f"--base={base}", f"--adapter={adapter}", "--quiet", "--workers=1"]
        whole = Path(room) / "whole"
        subprocess.run([sys.executable, "-m", "merge", *command, f"--out={whole}"], check=True)
        expected, sizes = files(whole), [path.stat().st_size for path in whole.glob("*.safetensors")]
        total, largest = sum(sizes), max(sizes)
        print(f"{total:,} bytes in {len(sizes)} shards, the largest {largest:,}; {options.kills} kills")
        good = 0
        for number in range(1, options.kills + 1):
            at, out, began = chance.randrange(total), Path(room) / f"out{number}", time.monotonic()
            killed = subprocess.run([sys.executable, "-c", KILLED, str(at), *command, f"--out={out}"], check=False)
            halves = [path.name for path in out.glob("*.partial")]
            subprocess.run([sys.executable, "-m", "merge", *command, f"--out={out}"], check=True)
            figures = last_run(out)
            redone = at - figures["resumed_bytes"]  # written by the killed run, and not kept by the resumed one
            same = files(out) == expected
            fine = same and killed.returncode == -signal.SIGKILL and len(halves) == 1 and redone <= largest
            good += fine
            outcome = "identical" if same else "DIFFERENT"
            print(f"{number:3d}  at byte {at:>11,}  redone {redone:>10,}  {outcome}  {time.monotonic() - began:.1f} s")
            for path in out.iterdir():
                path.unlink()
            out.rmdir()
        print(f"{good} of {options.kills}: killed inside a shard, byte-identical after resume, at most one shard redone")
    return 0 if good == options.kills else 1


if __name__ == "__main__":
    sys.exit(main())
