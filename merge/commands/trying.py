"""`proxy`, `proxy-adapter` and `support`: small real checkpoints to try things on, and what there is to try."""

import json
from pathlib import Path
from typing import Annotated

import typer

from merge.commands.options import Base, Json


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
