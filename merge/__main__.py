"""`python -m merge`, also `lora-merge`: prints, and turns errors into exit codes.

0 done · 2 usage, or a choice that must be made · 3 refused, nothing written · 4 failed while writing, run the same command again
130/143 interrupted, same
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from merge import default_workers, lean
from merge.errors import MergeError

if TYPE_CHECKING:
    from merge.task import Merge

app = typer.Typer(
    name="merge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Merge a LoRA adapter into a sharded checkpoint: streaming, bounded memory, resumable.",
)

Base = Annotated[Path, typer.Option(help="Directory of the base checkpoint (safetensors).")]
Adapters = Annotated[list[Path], typer.Option("--adapter", help="Directory of a PEFT adapter; several are summed.")]
Weights = Annotated[list[float] | None, typer.Option("--weight", help="Factor of each --adapter, in their order; 1 unless given.")]
Out = Annotated[Path, typer.Option(help="Directory to write: new, empty, or a half-finished merge to continue.")]
Dtype = Annotated[
    str | None,
    typer.Option("--output-dtype", help="same, bf16, fp16 or fp32; default: same, but for a quantised base it must be chosen."),
]
Rounding = Annotated[
    str,
    typer.Option(
        metavar="RULE", help="nearest, faithful (keeps the fine-tune) or stochastic. Default: faithful for a quantised base, else nearest."
    ),
]
Rounds = Annotated[int | None, typer.Option(min=1, help="Rounds of faithful, at most; fewer where that is enough. Default: 8.")]
Seed = Annotated[int | None, typer.Option(help="Of stochastic; default: 0. Same seed, same bytes.")]
Block = Annotated[int, typer.Option("--block-mib", min=1, help="Stored mebibytes per slab; part of the plan.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of text.")]


class Stopped(BaseException):
    """SIGINT or SIGTERM: passes every `except Exception`, and typer's own idea of an abort."""


def usage(message: str) -> NoReturn:
    """End with exit code 2."""
    typer.echo(f"Usage error: {message}", err=True)
    raise typer.Exit(2)


@app.command()
def run(
    base: Base,
    adapter: Adapters,
    out: Out,
    output_dtype: Dtype = None,
    rounding: Rounding = "",
    block_mib: Block = 1,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; default: the machine's cores, at most 8.")] = None,
    weight: Weights = None,
    rounds: Rounds = None,
    seed: Seed = None,
    device: Annotated[str, typer.Option(help="cpu. (cuda is not built yet.)")] = "cpu",
    link: Annotated[bool, typer.Option("--link", help="Not built yet.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove an output of ours first.")] = False,
    metrics_file: Annotated[Path | None, typer.Option(help="Figures of the run; default: OUT/merge-run.jsonl.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    as_json: Json = False,
) -> None:
    """Merge an adapter into a checkpoint, or continue a merge that stopped."""
    began = time.monotonic()
    _refuse_unbuilt({"--link": link, "--device cuda": device != "cpu"})
    if metrics_file and not metrics_file.resolve().parent.is_dir():
        usage(f"--metrics-file {metrics_file}: there is no such directory")
    work = _work(base, adapter, weight or [], out, output_dtype, rounding, block_mib, rounds, seed)
    from merge import display, engine
    from merge.monitor import Monitor
    from merge.task import RUN_FILE

    monitor, threads = Monitor(), workers or default_workers()
    metrics = display.Metrics(metrics_file or out / RUN_FILE, out, threads)
    with display.watched(monitor, metrics, out, quiet=quiet or as_json) as gpus:
        result = engine.run(work, monitor, workers=threads, overwrite=overwrite)
    certify = display.certify_command(work)
    sample = display.figures(monitor, gpus) | {"whole_seconds": round(time.monotonic() - began, 3)}
    if not result.already:
        metrics.write("end", sample)
    if as_json:
        data = {"out": str(out), "already_finished": result.already, "plan": result.manifest.plan, "tensors": dict(result.manifest.tensors)}
        typer.echo(
            json.dumps(data | {"adapter_tensors": result.manifest.adapter_tensors, "run": sample, "certify": certify}, sort_keys=True)
        )
    elif not quiet and result.already:
        typer.echo(f"{out} holds this very merge already, finished. Nothing was written.\nHave it judged:\n  {certify}")
    elif not quiet:
        typer.echo(display.summary(result.manifest, sample, whole_seconds=sample["whole_seconds"], certify=certify))


@app.command()
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
    work = _work(base, adapter, weight or [], out, output_dtype, rounding, block_mib, rounds, seed)
    from merge import display, forecast, output

    output.refuse_foreign(out)
    output.refuse_full_disk(work)
    memory, kept = forecast.memory(work.plan, workers or default_workers()), forecast.retention(work)
    if as_json:
        found = {"digest": work.plan.digest, "disk": work.disk, "memory": memory, "retention": kept[work.decoded] if kept else None}
        typer.echo(json.dumps(work.plan.to_json() | found, sort_keys=True))
    else:
        typer.echo(display.forecast(work, memory_bytes=memory, kept=kept))


@app.command()
def status(out: Out, as_json: Json = False) -> None:
    """Say how far the merge in OUT has come."""
    from merge import output

    found = output.status(out)
    if as_json:
        typer.echo(json.dumps({"state": found.state, "done": found.done, "left": found.left}, sort_keys=True))
    elif found.state == "nothing":
        typer.echo(f"{out}: no merge of ours.")
    else:
        typer.echo(f"{out}: {found.state}; {len(found.done)} shards done, {len(found.left)} left.")


@app.command()
def clean(out: Out) -> None:
    """Remove a half-finished output, and nothing else."""
    from merge import output

    typer.echo(f"{out}: {output.clean(out)} files removed.")


@app.command()
def proxy(
    family: Annotated[
        str,
        typer.Option(
            help="deepseek-v3, llama, llama4, qwen2, qwen3.5-moe, gpt2; deepseek-v3-fp8, llama-fp8-channel … : a wrong name lists all."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    layers: Annotated[int | None, typer.Option(min=1, help="Decoder layers; deepseek-v3 knows 3 and 61.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
) -> None:
    """Make a tiny checkpoint with the real structure of a family."""
    from merge.proxies import make_checkpoint

    typer.echo(str(make_checkpoint(family, out, layers=layers, seed=seed)))


@app.command("proxy-adapter")
def proxy_adapter(
    base: Base,
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    style: Annotated[str, typer.Option(help="peft: really trained; colossalai: adapter_model.bin with one pair per expert.")] = "peft",
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 6,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
) -> None:
    """Train a tiny LoRA adapter with PEFT on a proxy checkpoint."""
    from merge.proxies import make_adapter

    typer.echo(str(make_adapter(base, out, style=style, steps=steps, seed=seed)))


@app.command()
def rehearse() -> None:
    """Not built yet."""
    usage("rehearse is not built yet")


@app.command()
def support(as_json: Json = False) -> None:
    """Say what is merged, family by family and feature by feature, and what is refused."""
    from merge import encodings
    from merge.adapters import refused, table

    found, reasons = (
        table.read(),
        dict(refused.reasons()) | {f"a base quantised by {name}": why for name, why in encodings.refusals().items()},
    )
    stored = encodings.merged()
    if as_json:
        typer.echo(json.dumps(found | {"refused": reasons, "stored": stored}, sort_keys=True))
    else:
        typer.echo("\n".join(["Merged into bases that are stored as", *(f"  {line}" for line in stored), "", table.text(found, reasons)]))


def _refuse_unbuilt(options: dict[str, object]) -> None:
    unbuilt = [name for name, value in options.items() if value not in (None, False, [])]
    if unbuilt:
        usage(f"{', '.join(unbuilt)}: not built yet")


def _work(
    base: Path,
    adapters: list[Path],
    weights: list[float],
    out: Path,
    output_dtype: str | None,
    rounding: str,
    block_mib: int,
    rounds: int | None,
    seed: int | None,
) -> "Merge":
    """The merge that the options describe; imports torch and transformers only once they are known to make sense."""
    if output_dtype not in (None, "same", "bf16", "fp16", "fp32"):
        usage(f"--output-dtype {output_dtype}: same, bf16, fp16 or fp32 was expected")
    if rounding not in ("", "nearest", "faithful", "stochastic"):
        usage(f"--rounding {rounding}: nearest, faithful or stochastic was expected")
    if rounds is not None and rounding not in ("", "faithful"):
        usage(f"--rounds belongs to --rounding faithful, and --rounding is {rounding}")
    if seed is not None and rounding != "stochastic":
        usage("--seed belongs to --rounding stochastic")
    if weights and len(weights) != len(adapters):
        usage(f"{len(weights)} --weight for {len(adapters)} --adapter: one each was expected, or none")
    with lean.without(*lean.NOT_NEEDED):
        import transformers.generation.utils
        import transformers.modeling_layers  # noqa: F401  # what every model class is defined with

        from merge.forecast import prepared
        from merge.planner import Options
        from merge.rounding import ROUNDS

    options = Options(rounding=rounding, block_mib=block_mib, rounds=rounds or ROUNDS, seed=seed or 0)
    return prepared(base, adapters, out, output_dtype, options, weights)


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
