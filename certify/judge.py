"""The gate without pytest: for notebooks, pipelines and the gate's own exam."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from certify.errors import UsageError
from certify.finding import Finding
from certify.request import Request

if TYPE_CHECKING:  # torch costs a second, and pytest imports this package in every run of an environment
    from certify.verdict import Certificate


def judge(
    base: str | Path,
    adapter: str | Path | Sequence[str | Path] | None,
    merged: str | Path,
    *,
    weights: Sequence[float] = (),
    criterion: str = "nearest",
    output_dtype: str = "same",
    level: str = "layers",
    only: str | None = None,
    min_retention: float = 0.5,
    base_digest: str | None = None,
    accept: str | Path | None = None,
    requester: str | None = None,
) -> "Certificate":
    """Judges one merged checkpoint. The arguments mean what `Request` says; adapter None: located through the manifest.

    Raises UsageError for a question that makes no sense. Everything else, a fault of the gate itself included, is in the certificate.
    """
    adapters = () if adapter is None else (adapter,) if isinstance(adapter, str | Path) else tuple(adapter)
    terms = (tuple(weights), criterion, output_dtype, level, only, min_retention, base_digest, Path(accept) if accept else None, requester)
    return _judge(Request(Path(base), Path(merged), tuple(map(Path, adapters)), *terms))


def _judge(request: Request) -> "Certificate":
    """A fault of ours must never look like a fault of the checkpoint, wherever it happens."""
    from certify.examination import Examination

    examination, findings, run = None, list[Finding](), 0
    crashed, step = None, "the inputs"
    try:
        examination = Examination(request)
        step = "the list of questions"
        for question in [question for question in examination.questions() if question.within(request.only)]:
            step = question.subject
            found = question.ask()
            findings += found
            run += bool(found)
    except (UsageError, KeyboardInterrupt):
        raise
    except BaseException as error:
        crashed = f"{step}: {type(error).__name__}: {error}"
    try:
        if examination is not None:
            return examination.certificate(findings, run=run, crashed=crashed)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        crashed = crashed or f"the certificate: {type(error).__name__}: {error}"
    return _without_proof(request, findings, str(crashed))


def _without_proof(request: Request, findings: Sequence[Finding], crashed: str) -> "Certificate":
    """ERROR, by a gate that cannot even say what it was about."""
    from certify.statement import bare
    from certify.verdict import Certificate, decide

    verdict, reason = decide(findings, run=0, expected=0, only=request.only, crashed=crashed)
    return Certificate(verdict, request.level, reason, bare(request.level, verdict, reason), tuple(findings))
