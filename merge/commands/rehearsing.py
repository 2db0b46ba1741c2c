"""`rehearse`: verify on a small model first, as one command."""

import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from merge import default_workers
from merge.commands import options
from merge.commands.options import Adapters, Base, Block, Dtype, Json, Rounding, Rounds, Seed, Weights
from merge.errors import NOTHING_WRITTEN, OutputError

if TYPE_CHECKING:
    from merge.task import Merge

FAILED = 1  # the twin's merge was not certified, or the planted defect was not caught


Sample = Annotated[
    int, typer.Option(min=0, metavar="N", help="Real weights to merge in memory, to see what storage will keep of the fine-tune.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="New directory for the twin, its merge, the gate's reports and forecast.json; default: nothing is kept."
    ),
]
Workers = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads of the real merge; default: the machine's cores, at most 8.")
]


def rehearse(
    base: Base,
    adapter: Adapters,
    output_dtype: Dtype = None,
    rounding: Rounding = "",
    block_mib: Block = 1,
    weight: Weights = None,
    rounds: Rounds = None,
    seed: Seed = None,
    sample: Sample = 0,
    out: Out = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Try the merge on a shrunken twin, have the twin judged, and foretell the real one.

    From the headers of your base and adapter a small twin is made: your keys,
    dtypes, shards, ties and adapter features, with cut dimensions and seeded
    numbers. It is merged; the gate must certify it, and must reject a copy in
    which one module was left unmerged. Then: what the real merge will do, its
    disk to the byte, its memory, and its time on this machine.

    Above 10,000 tensors the gate judges the weights of all of them, and runs
    the modules of one layer.

    Exit codes: 0 certified, and the defect was caught; 1 not so; 2 usage;
    3 refused, and the sentence says why.
    """
    began = time.monotonic()
    if out and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"--out {out} is not an empty directory. {NOTHING_WRITTEN}")
    with ExitStack() as stack:
        room = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rehearsal-")))
        work = options.work(base, adapter, weight or [], room / "real", output_dtype, rounding, block_mib, rounds, seed)
        _ = work.plan
        room.mkdir(parents=True, exist_ok=True)
        passed = _rehearsed(work, room, out, workers or default_workers(), sample, began, as_json=as_json)
    if not passed:
        raise typer.Exit(FAILED)


def _rehearsed(work: "Merge", room: Path, out: Path | None, workers: int, sample: int, began: float, *, as_json: bool) -> bool:
    """Rehearse, keep the forecast in `out`, and tell; whether all is well."""
    from merge.rehearse.rehearsal import rehearse
    from merge.rehearse.show import show

    with Console(stderr=True, quiet=as_json).status("planning") as status:
        disk, planned = room if out else Path.cwd(), time.monotonic() - began
        found = rehearse(work, room, disk, status.update, workers=workers, planned=planned, weights=sample)
    if out:
        (out / "forecast.json").write_text(json.dumps(found.foretold.to_json(), indent=2, sort_keys=True) + "\n")
    if as_json:
        typer.echo(json.dumps(found.to_json(), sort_keys=True))
    else:
        show(Console(highlight=False), found)
    return found.passed
