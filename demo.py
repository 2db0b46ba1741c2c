"""The main job from end to end, on a checkpoint small enough for a laptop: `python -m tox -e demo`.

Makes a proxy checkpoint with the real structure of DeepSeek-V3, trains a LoRA adapter on it, merges, and has the result judged.
Each step is a command that a user would type; it is printed before it runs.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path


def step(*command: str) -> int:
    """Print one command, run it, return its exit code."""
    print(f"\n$ python -m {shlex.join(command)}", flush=True)
    return subprocess.run([sys.executable, "-m", *command], check=False).returncode


def main() -> int:
    """The exit code of the first step that fails, or of the gate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", default="deepseek-v3", choices=["deepseek-v3", "llama", "qwen2", "gpt2"])
    parser.add_argument("--layers", default=None, help="decoder layers of the proxy; deepseek-v3 knows 3 and 61")
    parser.add_argument("--style", default="peft", choices=["peft", "colossalai"], help="who made the adapter")
    parser.add_argument("--report", type=Path, default=Path("reports/demo"))
    options = parser.parse_args()
    report = options.report.resolve()
    depth = ["--layers", options.layers] if options.layers else []
    with tempfile.TemporaryDirectory(prefix="mergegate-") as room:
        base, adapter, merged = (f"{room}/{name}" for name in ("base", "adapter", "merged"))
        code = (
            step("merge", "proxy", "--family", options.family, *depth, "--out", base)
            or step("merge", "proxy-adapter", "--base", base, "--style", options.style, "--out", adapter)
            or step("merge", "run", "--base", base, "--adapter", adapter, "--out", merged)
            or step("certify", "run", f"--base={base}", f"--adapter={adapter}", f"--merged={merged}", f"--report={report}")
        )
    if report.is_dir():
        names = {"To read": "index.html", "For CI": "junit.xml", "As data": "certificate.json"}
        print("\n" + "\n".join(f"{use:8s} {report / name}" for use, name in names.items()))
    return code


if __name__ == "__main__":
    sys.exit(main())
