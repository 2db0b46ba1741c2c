"""Start pytest so that a checkpoint cannot configure it: a process of its own, and nothing in it that the checkpoint could have named.

pytest reads its configuration from any existing path on its command line, executes conftest.py files near them, and takes options from the
environment; Python executes what PYTHONPATH and the working directory hold. So: the configuration is named (`-c`, `--rootdir`,
`--noconftest`), options have the form --option=value, other plug-ins are not loaded, and the working directory is a new, empty one.
"""

import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

PACKAGE = Path(__file__).resolve().parent
ERROR, INCOMPLETE = 3, 10  # exit codes: the gate itself failed; it was interrupted
VERDICTS = (0, 1, 3, 4, 10)  # exit codes that mean something; any other is an ERROR
PLUGIN = "certify.plugin"


def arguments(options: Sequence[str]) -> list[str]:
    """pytest's command line for the gate's own options, each in the form --option=value."""
    own = ["-c", str(PACKAGE / "pytest.ini"), "--rootdir", str(PACKAGE), "--noconftest", "-p", PLUGIN, "-q"]
    return [*own, str(PACKAGE), *options]


def environment(inherited: Mapping[str, str], judged: Sequence[Path]) -> dict[str, str]:
    """The environment without pytest's variables, without import paths that are relative or lie inside what is judged, and offline."""
    kept = {name: value for name, value in inherited.items() if not name.startswith("PYTEST_")}
    refused = [path.resolve() for path in judged]
    paths = [Path(entry) for entry in inherited.get("PYTHONPATH", "").split(os.pathsep) if entry]
    trusted = [path for path in paths if path.is_absolute() and not any(path.resolve().is_relative_to(folder) for folder in refused)]
    if PACKAGE.parent.name not in ("site-packages", "dist-packages"):
        trusted.append(PACKAGE.parent)  # a checkout that is not installed
    kept["PYTHONPATH"] = os.pathsep.join(str(path) for path in trusted)
    return kept | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "HF_HUB_OFFLINE": "1"}


def run(options: Sequence[str], judged: Sequence[Path]) -> int:
    """Judge in a fresh process; returns its exit code. A process that died without a verdict is an ERROR, never a rejection."""
    with tempfile.TemporaryDirectory(prefix="certify-") as empty:
        command = [sys.executable, "-P", "-m", "certify.launch", *arguments(options)]
        with subprocess.Popen(command, cwd=empty, env=environment(os.environ, judged)) as process:
            code = _wait(process)
    if code == -signal.SIGINT:
        return INCOMPLETE
    if code not in VERDICTS:
        sys.stderr.write(f"certify: the judging process ended with {code} and without a verdict.\n")
        return ERROR
    return code


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code. A terminal's SIGINT reaches the child by itself, which then says INCOMPLETE; SIGTERM is handed on as the same."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        process.send_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, stop), signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


def inside(words: list[str]) -> int:
    """pytest, in the fresh process. Whatever escapes from it is the gate's own failure: Python would end with 1, which means REJECTED."""
    try:
        import pytest

        code = int(pytest.main(words))
        return INCOMPLETE if code == pytest.ExitCode.INTERRUPTED else code
    except KeyboardInterrupt:
        return INCOMPLETE
    except BaseException:
        traceback.print_exc()
        return ERROR


if __name__ == "__main__":
    sys.exit(inside(sys.argv[1:]))
