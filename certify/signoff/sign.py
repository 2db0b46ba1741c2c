"""A certificate signed: "I have read it, and I release what it names"."""

from dataclasses import dataclass
from pathlib import Path

from certify.errors import RefusedError
from certify.inputs.strict_json import JSON_MAX
from certify.signoff import signature
from certify.signoff.regular import content
from certify.signoff.signature import Signing
from certify.signoff.stated import Stated, stated
from certify.signoff.verify import CERTIFIED


@dataclass(frozen=True, slots=True)
class Signed:
    """A certificate, and where its signature lies."""

    certificate: Stated
    signature: Path


def sign(certificate: Path, signer: Signing, out: Path | None) -> Signed:
    """Write the signature, by default beside the certificate. Raises RefusedError for any verdict but CERTIFIED, CertifyError, OSError."""
    raw = content(certificate, JSON_MAX)
    told = stated(raw)
    if told.verdict != CERTIFIED:
        raise RefusedError(f"the verdict is {told.verdict}: {told.reason}")
    target = out or certificate.with_name(f"{certificate.name}.sig")
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(signature.sign(raw, signer))
    partial.replace(target)
    return Signed(told, target)
