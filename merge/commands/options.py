"""The options that several commands have, and the merge that they describe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from merge import lean

if TYPE_CHECKING:
    from merge.task import Merge

Base = Annotated[Path, typer.Option(metavar="DIR", help="Directory of the base checkpoint (safetensors).")]
Adapters = Annotated[list[Path], typer.Option("--adapter", metavar="DIR", help="Directory of a PEFT adapter; several are summed.")]
Weights = Annotated[
    list[float] | None, typer.Option("--weight", metavar="W", help="Factor of each --adapter, in their order; 1 unless given.")
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Directory to write: new, empty, or a half-finished merge to continue.")]
Begun = Annotated[Path, typer.Option("--out", metavar="DIR", help="Directory of the merge.")]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--output-dtype", metavar="DTYPE", help="same, bf16, fp16 or fp32; default: same, but for a quantised base it must be chosen."
    ),
]
Rounding = Annotated[
    str,
    typer.Option(
        metavar="RULE", help="nearest, faithful (keeps the fine-tune) or stochastic. Default: faithful for a quantised base, else nearest."
    ),
]
Rounds = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Rounds of faithful, at most; fewer where that is enough. Default: 8.")
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Of stochastic; default: 0. Same seed, same bytes.")]
Block = Annotated[int, typer.Option("--block-mib", min=1, metavar="N", help="Stored mebibytes per slab; part of the plan.")]
Json = Annotated[bool, typer.Option("--json", metavar="", help="One JSON object on stdout instead of text.")]


def usage(message: str) -> NoReturn:
    """End with exit code 2."""
    typer.echo(f"Usage error: {message}", err=True)
    raise typer.Exit(2)


def refuse_unbuilt(options: dict[str, object]) -> None:
    unbuilt = [name for name, value in options.items() if value not in (None, False, [])]
    if unbuilt:
        usage(f"{', '.join(unbuilt)}: not built yet")


def work(
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
