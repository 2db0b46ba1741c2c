"""`run`, `plan`, `status` and `clean`: one merge, before, during and after."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merge import default_workers
from merge.commands import options
from merge.commands.options import Adapters, Base, Begun, Block, Dtype, Json, Out, Rounding, Rounds, Seed, Weights, refuse_unbuilt, usage

if TYPE_CHECKING:
    from merge.engine import Result


def run(
    base: Base,
    adapter: Adapters,
    out: Out,
    output_dtype: Dtype = None,
    rounding: Rounding = "",
    block_mib: Block = 1,
    workers: Annotated[int | None, typer.Option(min=1, metavar="N", help="Threads; default: the machine's cores, at most 8.")] = None,
    weight: Weights = None,
    rounds: Rounds = None,
    seed: Seed = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu. (cuda is not built yet.)")] = "cpu",
    link: Annotated[bool, typer.Option("--link", metavar="", help="Not built yet.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar="", help="Remove an output of ours first.")] = False,
    metrics_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Figures of the run; default: OUT/merge-run.jsonl.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", metavar="", help="Print errors only.")] = False,
    as_json: Json = False,
) -> None:
    """Merge an adapter into a checkpoint, or continue a merge that stopped."""
    began = time.monotonic()
    refuse_unbuilt({"--link": link, "--device cuda": device != "cpu"})
    if metrics_file and not metrics_file.resolve().parent.is_dir():
        usage(f"--metrics-file {metrics_file}: there is no such directory")
    work = options.work(base, adapter, weight or [], out, output_dtype, rounding, block_mib, rounds, seed)
    from merge import display, engine
    from merge.monitor import Monitor
    from merge.task import RUN_FILE

    monitor, threads = Monitor(), workers or default_workers()
    metrics = display.Metrics(metrics_file or out / RUN_FILE, out, threads)
    with display.watched(monitor, metrics, out, quiet=quiet or as_json) as gpus:
        result = engine.run(work, monitor, workers=threads, overwrite=overwrite)
    sample = display.figures(monitor, gpus) | {"whole_seconds": round(time.monotonic() - began, 3)}
    if not result.already:
        metrics.write("end", sample)
    if as_json or not quiet:
        typer.echo(_told(result, out, sample, display.certify_command(work), as_json=as_json))


def _told(result: "Result", out: Path, sample: dict[str, Any], certify: str, *, as_json: bool) -> str:
    """What became of a merge, for a script or a person. certify  the command that has it judged"""
    from merge import display

    made = result.manifest
    if as_json:
        data = {"out": str(out), "already_finished": result.already, "plan": made.plan, "tensors": dict(made.tensors)}
        return json.dumps(data | {"adapter_tensors": made.adapter_tensors, "run": sample, "certify": certify}, sort_keys=True)
    if result.already:
        return f"{out} holds this very merge already, finished. Nothing was written.\nHave it judged:\n  {certify}"
    return display.summary(made, sample, whole_seconds=sample["whole_seconds"], certify=certify)


def plan(
    base: Base,
    adapter: Adapters,
    out: Out,
    output_dtype: Dtype = None,
    rounding: Rounding = "",
    block_mib: Block = 1,
    weight: Weights = None,
    rounds: Rounds = None,
    seed: Seed = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that the memory forecast assumes.")] = None,
    as_json: Json = False,
) -> None:
    """Say what `run` would do, from headers, and a few slabs where the base is quantised: operations, disk, memory. Writes nothing."""
    work = options.work(base, adapter, weight or [], out, output_dtype, rounding, block_mib, rounds, seed)
    from merge import display, forecast, output

    output.refuse_foreign(out)
    output.refuse_full_disk(work)
    memory, kept = forecast.memory(work.plan, workers or default_workers()), forecast.retention(work)
    if as_json:
        found = {"digest": work.plan.digest, "disk": work.disk, "memory": memory, "retention": kept[work.decoded] if kept else None}
        typer.echo(json.dumps(work.plan.to_json() | found, sort_keys=True))
    else:
        typer.echo(display.forecast(work, memory_bytes=memory, kept=kept))


def status(out: Begun, as_json: Json = False) -> None:
    """Say how far the merge in OUT has come."""
    from merge import output

    found = output.status(out)
    if as_json:
        typer.echo(json.dumps({"state": found.state, "done": found.done, "left": found.left}, sort_keys=True))
    elif found.state == "nothing":
        typer.echo(f"{out}: no merge of ours.")
    else:
        typer.echo(f"{out}: {found.state}; {len(found.done)} shards done, {len(found.left)} left.")


def clean(out: Begun) -> None:
    """Remove a half-finished output, and nothing else."""
    from merge import output

    typer.echo(f"{out}: {output.clean(out)} files removed.")
