"""The gate without pytest: for notebooks, pipelines and the gate's own exam."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from certify.finding import Finding
from certify.request import Request

if TYPE_CHECKING:  # torch costs a second, and pytest imports this package in every run of an environment
    from certify.verdict import Certificate


def judge(
    base: Path,
    adapter: Path | Sequence[Path] | None,
    merged: Path,
    *,
    weights: Sequence[float] = (),
    criterion: str = "nearest",
    output_dtype: str = "same",
    level: str = "layers",
    only: str | None = None,
    min_retention: float = 0.5,
    base_digest: str | None = None,
    accept: Path | None = None,
) -> "Certificate":
    """Judges one merged checkpoint. The arguments mean what `Request` says; adapter None: located through the manifest.

    Raises UsageError for a question that makes no sense. Everything else, a fault of the gate itself included, is in the certificate.
    """
    from certify.examination import Examination

    adapters = () if adapter is None else (adapter,) if isinstance(adapter, Path) else tuple(adapter)
    terms = (tuple(weights), criterion, output_dtype, level, only, min_retention, base_digest, accept)
    examination = Examination(Request(base, merged, adapters, *terms))
    findings: list[Finding] = []
    run = 0
    for question in examination.questions():
        if question.within(only):
            try:
                findings += question.ask()
            except Exception as error:  # a fault of ours must never look like a fault of the checkpoint
                return examination.certificate(findings, run=run, crashed=f"{question.subject}: {type(error).__name__}: {error}")
            run += 1
    return examination.certificate(findings, run=run)
