"""The gate's door to pytest, an entry point of the group `pytest11`: options, and who may configure this run.

Every pytest run of an environment loads this file: it imports nothing heavy, and does nothing unless a question is asked.
Options never come from a conftest.py: there, pytest would take `--base DIR` for a test path and execute DIR/conftest.py.
"""

import os
import shlex
from pathlib import Path
from typing import NoReturn

import pytest

from certify.command import words
from certify.errors import UsageError
from certify.report.room import keep_apart
from certify.request import CRITERIA, LEVELS, OUTPUT_DTYPES, REQUESTER, Request

PACKAGE = Path(__file__).resolve().parent
CONFIGURATIONS = (PACKAGE / "pytest.ini", PACKAGE.parent / "pyproject.toml")  # the gate's own; the checkout's, if checkpoints lie in it
UNBUILT = {
    "--device": "where to compute",
}
ASK = """Ask about a checkpoint:
  pytest certify/ --base=DIR --adapter=DIR --merged=DIR
  lora-certify run --base=DIR --adapter=DIR --merged=DIR"""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The gate's options; the same as those of `lora-certify run`."""
    group = parser.getgroup("certify", "certify: judge a merged checkpoint (pytest certify/ --base=DIR --adapter=DIR --merged=DIR)")
    add = group.addoption
    add("--base", metavar="DIR", help="checkpoint that the adapter was trained on")
    add("--adapter", metavar="DIR", action="append", default=[], help="adapter that was merged; may be given several times")
    add("--merged", metavar="DIR", help="checkpoint to be judged")
    add("--weight", metavar="W", action="append", type=float, default=[], help="factor of each adapter, in their order; default 1")
    add(
        "--criterion",
        choices=CRITERIA,
        default="nearest",
        help="which rounding is right (default: nearest)",
    )
    add("--output-dtype", choices=OUTPUT_DTYPES, default="same", help="declared transform of the stored dtype (default: same)")
    add("--level", choices=LEVELS, default="layers", help="what exit code 0 requires (default: layers)")
    add("--min-retention", metavar="R", type=float, default=0.5, help="least share of Δ in the stored weights (default: 0.5)")
    add("--base-digest", metavar="D", help="the folder digest that the base must have (64 hex digits)")
    add("--accept", metavar="FILE", help="TOML file of declared differences, each with a reason and an owner")
    add("--only", metavar="PATTERN", help="judge only subjects that match; the verdict is INCOMPLETE")
    add(
        "--requester",
        metavar="NAME",
        default=os.environ.get(REQUESTER),
        help=f"who asks; stands in the certificate (default: ${REQUESTER})",
    )
    add("--report", metavar="DIR", help="write certificate.json, junit.xml and index.html there")
    for name, meaning in UNBUILT.items():
        add(name, metavar="X", help=f"{meaning} (not built yet)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Arm the gate if a question is asked. Raises pytest.UsageError (exit code 4) if it is no question, or not safely asked."""
    option = config.option
    unbuilt = [name for name in UNBUILT if getattr(option, name[2:].replace("-", "_")) is not None]
    asked = [name for name in ("base", "adapter", "merged", "weight", "only", "accept", "report") if getattr(option, name)]
    if unbuilt:
        raise pytest.UsageError(f"{', '.join(unbuilt)}: not built yet")
    if not asked:
        return
    if not option.base or not option.merged:
        missing = " and ".join(f"--{name}" for name in ("base", "merged") if not getattr(option, name))
        raise pytest.UsageError(f"certify: {missing} missing beside --{asked[0]}. {ASK}")
    request = _request(option)
    _refuse_foreign_configuration(config, request)
    report = _report(option.report, request)
    from hypothesis import settings

    from certify.gate import Gate
    from certify.rows import Rows

    settings.register_profile("certify", derandomize=True, deadline=None, database=None)  # same run, same cases, from a wheel as well
    settings.load_profile("certify")
    gate = Gate(config, request, report)
    config.pluginmanager.register(gate, "certify.gate")
    if (html := getattr(option, "htmlpath", None)) and not gate.worker:  # of pytest-html, where it is installed
        config.pluginmanager.register(Rows(config, gate, Path(html).expanduser().absolute()), "certify.rows")


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session: pytest.Session) -> None:
    """Refuse `pytest certify/` that asks nothing: it would collect nothing, and nothing must not look like a verdict."""
    if session.config.pluginmanager.has_plugin("certify.gate"):
        return
    for argument in session.config.args:
        path = (session.config.invocation_params.dir / argument.partition("::")[0]).resolve()
        if path.is_relative_to(PACKAGE) or argument == "certify":
            refuse(session.config, f"--base and --merged missing. {ASK}")


def refuse(config: pytest.Config, message: str) -> NoReturn:
    """End the session with exit code 4 and one sentence; pytest would add that no tests ran."""
    config.option.verbose = -2
    raise pytest.UsageError(f"certify: {message}")


def _request(option: object) -> Request:
    """The question that the options ask, all paths absolute (a shell leaves the ~ in --base=~/x alone)."""

    def path(text: str) -> Path:
        return Path(text).expanduser().absolute()

    given = vars(option)
    if given["weight"] and len(given["weight"]) != len(given["adapter"]):
        raise pytest.UsageError(f"{len(given['weight'])} --weight for {len(given['adapter'])} --adapter: give one each, or none")
    return Request(
        base=path(given["base"]),
        merged=path(given["merged"]),
        adapters=tuple(path(folder) for folder in given["adapter"]),
        weights=tuple(given["weight"]),
        criterion=given["criterion"],
        output_dtype=given["output_dtype"],
        level=given["level"],
        only=given["only"],
        min_retention=given["min_retention"],
        base_digest=given["base_digest"],
        accept=path(given["accept"]) if given["accept"] else None,
        requester=given["requester"] or None,
    )


def _report(directory: str | None, request: Request) -> Path | None:
    """Where to write, if anywhere."""
    if directory is None:
        return None
    report = Path(directory).expanduser().absolute()
    try:
        keep_apart(report, (request.base, request.merged, *request.adapters))
    except UsageError as error:
        raise pytest.UsageError(f"certify: {error}") from error
    return report


def _refuse_foreign_configuration(config: pytest.Config, request: Request) -> None:
    """End the run if a file that is not the gate's own could have configured pytest, or came as a plug-in out of a checkpoint.

    pytest looks for its configuration at every existing path on its command line, before it knows which of them are our options' values.
    """
    found = config.inipath.resolve() if config.inipath else None
    judged = [path.resolve() for path in (request.base, request.merged, *request.adapters)]
    if found in CONFIGURATIONS and not any(found.is_relative_to(path) for path in judged):
        files = [getattr(plugin, "__file__", None) for plugin in config.pluginmanager.get_plugins()]
        inside = [file for file in files if file and any(Path(file).resolve().is_relative_to(path) for path in judged)]
        if not inside:
            return
        cause = f"pytest has executed {inside[0]}, which lies inside what is being judged."
    else:
        cause = f"pytest took its configuration from {found or 'no file at all'}, not from {CONFIGURATIONS[0]}."
    raise pytest.UsageError(
        f"certify: {cause} A verdict from this process would mean nothing.\nThese forms are safe in any order and place:\n"
        f"  {shlex.join(['lora-certify', 'run', *words(request)])}\n  {shlex.join(['pytest', str(PACKAGE), *words(request)])}"
    )
