"""How fast, and in how little memory: merging against `cp -r` + `sync` of the copies, and against PEFT's route.

`python benchmarks/speed.py [--pairs 5] [--json FILE]`. Alternating pairs on one machine, medians and ratios beside the raw times;
peak RSS is the kernel's figure of each process (wait4). Exits with 1 if the base is smaller than 1 GB or a target is missed.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPED = str(Path(__file__).with_name("shaped.py"))
LAYERS = {"1 GB": 3, "3 GB": 7}
LOOP_LIMIT = 1.5  # × copying, for the merge loop
EXTRA_LIMIT = 3.0  # seconds above copying, for the whole process
RSS_LIMIT = 400  # MiB
SETTLE = 3.0  # seconds before each run

PEFT_ROUTE = """
import sys, torch, transformers, peft
base, adapter, out = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
for file in __import__("pathlib").Path(out).iterdir():
    with file.open() as stream:
        __import__("os").fsync(stream.fileno())
"""


def timed(command: list[str]) -> tuple[float, float]:
    """(wall seconds, peak resident MiB) of one process."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed with {process.returncode}: {' '.join(command)}")
    return time.monotonic() - began, usage.ru_maxrss / 1024


def clear(out: Path) -> None:
    """Nothing left of the run before, on the disk or on its way there, nor its pages still hot: a virtual machine gives freed memory
    back to its host, and who writes at once after a deletion, as `cp` would here and a process that imports first would not, gains."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    time.sleep(SETTLE)


def merge(base: Path, adapter: Path, out: Path) -> dict[str, float]:
    """One run of ours: whole process, loop, peak RSS."""
    clear(out)
    wall, rss = timed([sys.executable, "-m", "merge", "run", f"--base={base}", f"--adapter={adapter}", f"--out={out}", "--quiet"])
    loop = json.loads((out / "merge-run.jsonl").read_text().splitlines()[-1])["seconds"]
    return {"wall": wall, "loop": loop, "rss": rss}


def copy(base: Path, _adapter: Path, out: Path) -> dict[str, float]:
    """The floor: the same bytes, copied and made durable."""
    clear(out)
    wall, rss = timed(["bash", "-c", f"cp -r '{base}' '{out}' && sync '{out}'/*"])
    return {"wall": wall, "rss": rss}


def peft(base: Path, adapter: Path, out: Path) -> dict[str, float]:
    """The usual way: load, merge_and_unload, save_pretrained, made durable."""
    clear(out)
    wall, rss = timed([sys.executable, "-c", PEFT_ROUTE, str(base), str(adapter), str(out)])
    return {"wall": wall, "rss": rss}


def pairs(other: Callable[..., dict[str, float]], count: int, base: Path, adapter: Path, out: Path) -> dict[str, Any]:
    """`count` alternating pairs of ours and another way; the order turns round with every pair."""
    ours, theirs = [], []
    for number in range(count):
        for way, found in ((merge, ours), (other, theirs))[:: 1 if number % 2 else -1]:
            found.append(way(base, adapter, out))
    middle = {kind: statistics.median(run[kind] for run in ours) for kind in ("wall", "loop", "rss")}
    their = statistics.median(run["wall"] for run in theirs)
    return {
        "merge": ours,
        other.__name__: theirs,
        "median": {**middle, other.__name__: their},
        "loop_ratio": middle["loop"] / their,
        "wall_ratio": middle["wall"] / their,
        "wall_extra_seconds": middle["wall"] - their,
    }


def main() -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory(prefix="mergegate-speed-") as room:
        for size, layers in LAYERS.items():
            folder = Path(room) / size.replace(" ", "")
            folder.mkdir()
            subprocess.run([sys.executable, SHAPED, str(folder), str(layers), "4096", "14336"], check=True)
            base, adapter = folder / "base", folder / "adapter"
            stored = sum(path.stat().st_size for path in base.glob("*.safetensors"))
            if stored < 1e9:
                print(f"the base has {stored:,} bytes: too small to measure")
                return 1
            merge(base, adapter, folder / "out")  # warm: page cache and imports
            against = {"copy": pairs(copy, options.pairs, base, adapter, folder / "out")}
            if size == "1 GB":
                against["peft"] = pairs(peft, options.pairs, base, adapter, folder / "out")
            result[size] = {"bytes": stored, **against}
            shutil.rmtree(folder)
    text = json.dumps(result, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return verdict(result)


def verdict(result: dict[str, Any]) -> int:
    """Print each target with what was reached; 1 if one was missed."""
    missed = 0
    for size in LAYERS:
        found = result[size]["copy"]
        for text, reached, limit in (
            ("merge loop / (cp + sync)", found["loop_ratio"], LOOP_LIMIT),
            ("whole process − (cp + sync), s", found["wall_extra_seconds"], EXTRA_LIMIT),
            ("peak RSS, MiB", found["median"]["rss"], RSS_LIMIT),
        ):
            missed += reached > limit
            print(f"{size}  {text:32s} {reached:8.2f}  limit {limit:g}  {'ok' if reached <= limit else 'MISSED'}")
    print(f"1 GB  PEFT's route / ours {1 / result['1 GB']['peft']['wall_ratio']:.1f} × the time")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
