"""`python -m merge`, also `lora-merge`: prints, and turns errors into exit codes.

0 done · 2 usage, or a choice that must be made · 3 refused, nothing written · 4 failed while writing, run the same command again
130/143 interrupted, same
"""

import os
import signal
import sys
from typing import NoReturn

import typer

from merge.commands import merging, rehearsing, trying
from merge.errors import MergeError

app = typer.Typer(
    name="merge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Merge a LoRA adapter into a sharded checkpoint: streaming, bounded memory, resumable.",
)
for command in (merging.run, merging.plan, merging.status, merging.clean):
    app.command()(command)
app.command()(rehearsing.rehearse)
app.command("proxy")(trying.proxy)
app.command("proxy-adapter")(trying.proxy_adapter)
app.command("support")(trying.support)


class Stopped(BaseException):
    """SIGINT or SIGTERM: passes every `except Exception`, and typer's own idea of an abort."""


def _stop(number: int, _frame: object) -> NoReturn:
    raise Stopped(number)


def process() -> int:
    """The exit code; errors become a sentence on stderr."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except MergeError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        return error.exit_code
    except Stopped as stopped:
        typer.echo("Stopped. Run the same command again to continue.", err=True)
        return 128 + int(stopped.args[0])
    return 0


def main() -> NoReturn:
    """The process. Everything that matters is durable by now, and taking torch apart would cost another half second."""
    code = process()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
