"""The gate without pytest: for notebooks, pipelines and the gate's own exam."""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from certify.finding import Finding
from certify.request import Request

if TYPE_CHECKING:  # torch costs a second, and pytest imports this package in every run of an environment
    from certify.examination import Examination
    from certify.verdict import Certificate


def judge(
    base: Path,
    adapter: Path | Sequence[Path] | None,
    merged: Path,
    *,
    weights: Sequence[float] = (),
    criterion: str = "nearest",
    output_dtype: str = "same",
    level: str = "weights",
    only: str | None = None,
    min_retention: float = 0.5,
    base_digest: str | None = None,
) -> "Certificate":
    """Judges one merged checkpoint. The arguments mean what `Request` says; adapter None: located through the manifest.

    Raises UsageError for a question that makes no sense. Everything else, a fault of the gate itself included, is in the certificate.
    """
    from certify.examination import Examination

    adapters = () if adapter is None else (adapter,) if isinstance(adapter, Path) else tuple(adapter)
    terms = (tuple(weights), criterion, output_dtype, level, only, min_retention, base_digest)
    examination = Examination(Request(base, merged, adapters, *terms))
    findings: list[Finding] = []
    run = 0
    for subject, ask in _questions(examination):
        if only is None or fnmatchcase(subject, only):
            try:
                findings += ask()
            except Exception as error:  # a fault of ours must never look like a fault of the checkpoint
                return examination.certificate(findings, run=run, crashed=f"{subject}: {type(error).__name__}: {error}")
            run += 1
    return examination.certificate(findings, run=run)


def _questions(examination: "Examination") -> Iterator[tuple[str, Callable[[], list[Finding]]]]:
    for name in examination.files:
        yield name, partial(examination.examine_file, name)
    for name in examination.side_files:
        yield name, partial(examination.examine_side_file, name)
    yield "adapter", examination.examine_adapter
    for _, name in examination.tensors:
        yield name, partial(examination.examine_tensor, name)
    for subject in examination.self_checks:
        yield subject, partial(examination.examine_itself, subject)
