"""A question as words of a command line, always --option=value: near a bare path pytest would look for its configuration."""

import shlex
from dataclasses import replace
from glob import escape

from certify.request import Request


def words(request: Request) -> list[str]:
    """Every option that asks this question; defaults are left out."""
    asked = [f"--base={request.base}", *(f"--adapter={folder}" for folder in request.adapters), f"--merged={request.merged}"]
    asked += [f"--weight={weight}" for weight in request.weights]
    default = Request(request.base, request.merged)
    for name in ("criterion", "output_dtype", "level", "min_retention", "base_digest", "accept"):
        if (value := getattr(request, name)) != getattr(default, name):
            asked.append(f"--{name.replace('_', '-')}={value}")
    return asked + ([f"--only={request.only}"] if request.only is not None else [])


def repeat(request: Request, subject: str) -> str:
    """The command that asks the same about one subject only."""
    return shlex.join(["lora-certify", "run", *words(replace(request, only=escape(subject)))])
