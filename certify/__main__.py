"""`lora-certify`, also `python -m certify`: judge a merged checkpoint, and explain what a check means.

0 CERTIFIED · 1 REJECTED · 3 ERROR, the gate itself failed · 4 usage · 10 INCOMPLETE
"""

import os
import sys

# `python -m` puts the working directory first, which may be a checkpoint: nothing more is imported from there, unless it is our checkout.
if os.getcwd() != __file__.rsplit(os.sep, 2)[0]:  # noqa: PTH109
    sys.path[:] = [entry for entry in sys.path if entry not in ("", os.getcwd())]  # noqa: PTH109

import json
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from certify import launch
from certify.errors import UsageError
from certify.request import CRITERIA, LEVELS, OUTPUT_DTYPES, REQUESTER
from certify.signoff import commands as signoff

ERROR, USAGE, INCOMPLETE = 3, 4, 10
CRITERION = (
    "Which stored values are right. nearest: W + Δ, rounded once. peft: also what PEFT's merge rounds twice. faithful: either neighbour "
    "of W + Δ, for merges with --rounding faithful or stochastic. A merge of ours prints the one that it needs."
)
app = typer.Typer(
    name="lora-certify",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Judge a checkpoint that somebody merged a LoRA adapter into: complete, untouched where it must be, right where it changed.",
    epilog="Exit codes: 0 CERTIFIED · 1 REJECTED · 3 ERROR (the gate itself failed) · 4 usage · 10 INCOMPLETE",
)


@app.command()
def run(
    base: Annotated[Path, typer.Option(metavar="DIR", help="Checkpoint that the adapter was trained on.")],
    merged: Annotated[Path, typer.Option(metavar="DIR", help="Checkpoint to be judged.")],
    adapter: Annotated[list[Path] | None, typer.Option(metavar="DIR", help="Adapter that was merged; repeat it for several.")] = None,
    weight: Annotated[list[float] | None, typer.Option(metavar="W", help="Factor of each adapter, in their order.")] = None,
    criterion: Annotated[str, typer.Option(metavar="|".join(CRITERIA), help=CRITERION)] = "nearest",
    output_dtype: Annotated[str, typer.Option(metavar="|".join(OUTPUT_DTYPES), help="Declared transform of the stored dtype.")] = "same",
    level: Annotated[str, typer.Option(metavar="|".join(LEVELS), help="What exit code 0 requires.")] = "layers",
    only: Annotated[str | None, typer.Option(metavar="PATTERN", help="Judge matching subjects only; never CERTIFIED.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="DIR", help="Write certificate.json, junit.xml and index.html there.")] = None,
    min_retention: Annotated[float, typer.Option(metavar="R", help="Least share of the adapter's change in the stored weights.")] = 0.5,
    accept: Annotated[Path | None, typer.Option(metavar="FILE", help="Differences that were declared, with reason and owner.")] = None,
    base_digest: Annotated[str | None, typer.Option(metavar="D", help="Folder digest that the base must have.")] = None,
    requester: Annotated[str | None, typer.Option(metavar="NAME", envvar=REQUESTER, help="Who asks; stands in the certificate.")] = None,
    device: Annotated[str | None, typer.Option(help="Not built yet.")] = None,
) -> None:
    """Judge a merged checkpoint, in a process that the checkpoint cannot configure.

    Without --adapter, the adapter is located through the manifest in the merged directory, if there is one.
    """
    adapters = [_absolute(folder) for folder in adapter or []]
    judged = {"base": _absolute(base), "merged": _absolute(merged)}
    single = {
        **judged,
        "criterion": criterion,
        "output-dtype": output_dtype,
        "level": level,
        "only": only,
        "report": _absolute(report) if report else None,
        "min-retention": min_retention,
        "accept": _absolute(accept) if accept else None,
        "base-digest": base_digest,
        "requester": requester,
        "device": device,
    }
    words = [f"--{name}={value}" for name, value in single.items() if value is not None]
    words += [f"--adapter={folder}" for folder in adapters] + [f"--weight={factor}" for factor in weight or []]
    raise typer.Exit(launch.run(words, [*judged.values(), *adapters]))


@app.command()
def screen(
    base: Annotated[Path, typer.Option(metavar="DIR", help="Checkpoint that the adapter was trained on.")],
    merged: Annotated[Path, typer.Option(metavar="DIR", help="Checkpoint to be looked at.")],
    adapter: Annotated[Path | None, typer.Option(metavar="DIR", help="Adapter whose configuration is lost; its scaling is found.")] = None,
    output_dtype: Annotated[str, typer.Option(metavar="|".join(OUTPUT_DTYPES), help="Declared transform of the stored dtype.")] = "same",
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")] = False,
) -> None:
    """Say what base and merged show without the adapter: what was touched, how much of it survived, what looks unusual.

    Advice, never a certificate: exit code 10, or 1 for what is wrong whatever the adapter is.
    """
    from certify.screen.ask import ask

    try:
        answer = ask(_absolute(base), _absolute(merged), _absolute(adapter) if adapter else None, output_dtype)
    except UsageError as error:
        _usage(str(error))
    typer.echo(json.dumps(answer.data(), indent=2, sort_keys=True) if as_json else "\n".join(answer.text()))
    raise typer.Exit(answer.exit_code)


@app.command()
def explain(code: Annotated[str, typer.Argument(metavar="CODE", help="C0, C1, …")]) -> None:
    """Say what a check demands, why, and what its failures usually mean."""
    from certify.explain import sections

    if code.upper() in sections():
        typer.echo(sections()[code.upper()])
        return
    _usage(f"there is no check {code!r}; C0 … C10 are explained")


@app.command()
def render(
    certificate: Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="certificate.json of a report.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page; default: index.html beside the certificate.")] = None,
) -> None:
    """Make the page again, from a certificate alone.

    Whether the certificate is genuine is another question: `lora-certify verify` answers it.
    """
    from certify import report
    from certify.report import page, read

    target = _absolute(out) if out else _absolute(certificate).with_name(report.PAGE)
    try:
        report.put(target, page.render(read.read(_absolute(certificate))))
    except (UsageError, OSError) as error:
        _usage(str(error))
    typer.echo(str(target))


signoff.register(app)


def _absolute(path: Path) -> Path:
    """The judging process works in an empty directory; and a shell leaves the ~ in --base=~/x alone."""
    return path.expanduser().absolute()


def _usage(message: str) -> NoReturn:
    typer.echo(f"Usage error: {message}", err=True)
    raise typer.Exit(USAGE)


def main() -> None:
    """The process. A wrong command line, an interrupt and an unforeseen error end with this program's codes, not typer's or Python's."""
    try:
        app()
    except SystemExit as end:
        sys.exit({2: USAGE, 130: INCOMPLETE}.get(end.code, end.code) if isinstance(end.code, int) else end.code)
    except KeyboardInterrupt:
        sys.exit(INCOMPLETE)
    except Exception:  # shown in full, and 3: Python's own 1 would mean REJECTED
        traceback.print_exc()
        sys.exit(ERROR)


if __name__ == "__main__":
    main()
