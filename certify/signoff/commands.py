"""`lora-certify sign`, `verify` and `compare` as a command line sees them: options in, sentences and exit codes out."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from certify.errors import CertifyError, RefusedError, UsageError
from certify.report.text import figure, human, printable
from certify.signoff import manual, options

if TYPE_CHECKING:
    from certify.signoff.signature import Signing, Trusted
    from certify.signoff.stated import Stated

REFUSED, ERROR = 1, 3
PASSWORD = "LORA_CERTIFY_KEY_PASSWORD"


def sign(
    certificate: options.Certificate,
    private_key: options.PrivateKey = None,
    signing_certificate: options.SigningCertificate = None,
    certificate_chain: options.Chain = None,
    sigstore: options.LogIn = False,
    out: options.Out = None,
) -> None:
    """`lora-certify sign`."""
    with _Answered():
        from certify.inputs.folder import listing_digest
        from certify.signoff.sign import sign as signed

        _exist(certificate, private_key, signing_certificate, *(certificate_chain or []))
        made = signed(certificate, _signer(private_key, signing_certificate, certificate_chain, sigstore=sigstore), out)
        told = made.certificate
        typer.echo(f"Signed: {told.verdict}({told.level}). The signature is {made.signature}.")
        _show(told, {"files": figure(len(told.subjects)), "digest": listing_digest(told.subjects)})


def verify(
    merged: options.Merged,
    certificate: options.ItsCertificate,
    public_key: options.PublicKey = None,
    root: options.Roots = None,
    signer: options.SignerName = None,
    sigstore: options.ByLogin = False,
    identity: options.Name = None,
    identity_provider: options.Provider = None,
    signature: options.Signature = None,
    expect_digest: options.Digest = None,
    level: options.Level = "layers",
    allow_claimed: options.Claimed = False,
) -> None:
    """`lora-certify verify`."""
    with _Answered():
        from certify.signoff.verify import Demand
        from certify.signoff.verify import verify as verified

        if not merged.is_dir():
            raise UsageError(f"{merged}: no such directory")
        _exist(certificate, public_key, *(root or []))
        trust = _trusted(public_key, root, signer, (identity, identity_provider), sigstore=sigstore)
        bundle = signature or certificate.with_name(f"{certificate.name}.sig")
        found = verified(merged, certificate, bundle, trust, Demand(level, expect_digest, allow_claimed))
        told = found.certificate
        typer.echo(f"Verified: {merged.resolve()} is {told.verdict}({told.level})")
        files = f"all {figure(len(told.subjects))} as certified, {human(found.size)}"
        _show(told, {"files": files, "digest": found.digest, "signed by": found.signer})


def compare(before: options.Before, after: options.After, as_json: options.Json = False) -> None:
    """`lora-certify compare`."""
    with _Answered():
        from certify.inputs.strict_json import JSON_MAX
        from certify.signoff import compare as comparison
        from certify.signoff.regular import content
        from certify.signoff.stated import stated

        _exist(before, after)
        told = comparison.compare(*(stated(content(path, JSON_MAX)) for path in (before, after)))
        typer.echo(json.dumps(told, indent=2, sort_keys=True) if as_json else "\n".join(comparison.text(told)))


def register(app: typer.Typer) -> None:
    """Add the three commands."""
    for command, text, done in ((sign, manual.SIGN, "signed"), (verify, manual.VERIFY, "verified"), (compare, manual.COMPARE, "compared")):
        app.command(help=_flowing(text), epilog=manual.EXITS.format(done=done))(command)


def _signer(key: Path | None, certificate: Path | None, chain: list[Path] | None, *, sigstore: bool) -> "Signing":
    """Who signs. Raises UsageError for options that do not belong together."""
    from certify.signoff.keyless import Login
    from certify.signoff.keys import Signer

    if (key is None) != sigstore:
        raise UsageError("give either --private-key or --sigstore")
    if certificate is not None and key is None:
        raise UsageError("--signing-certificate belongs to a --private-key")
    if chain and certificate is None:
        raise UsageError("--certificate-chain belongs to a --signing-certificate")
    password = os.environ.get(PASSWORD)
    return Signer(key, password.encode() if password else None, certificate, tuple(chain or ())) if key else Login()


def _trusted(
    key: Path | None, roots: list[Path] | None, signer: str | None, identity: tuple[str | None, str | None], *, sigstore: bool
) -> "Trusted":
    """Who must have signed. Raises UsageError for options that do not belong together."""
    from certify.signoff.keyless import Identity
    from certify.signoff.keys import Trust

    if [key is not None, bool(roots), sigstore].count(True) != 1:
        raise UsageError("give either --public-key or --root or --sigstore")
    if signer is not None and not roots:
        raise UsageError("--signer belongs to --root")
    name, provider = identity
    if sigstore and name and provider:
        return Identity(name, provider)
    if sigstore or name or provider:
        raise UsageError("--sigstore, --identity and --identity-provider belong together: anybody can sign by a login")
    return Trust(key, tuple(roots or ()), signer)


def _show(told: "Stated", lines: dict[str, str]) -> None:
    """What a person should know of a certificate that is signed, or relied upon."""
    match told.predicate.get("base"):
        case {"name": str(name), "identity": {"status": str(status)}}:
            lines |= {"base": f"{name}   {status}"}
    names = [f"{adapter.get('name')}{'   claimed' if adapter in told.claimed else ''}" for adapter in told.predicate["adapters"]]
    lines |= {"adapter": ", ".join(names)}
    if isinstance(accepted := told.predicate.get("accepted"), list) and accepted:
        lines |= {"accepted": f"{figure(len(accepted))} differences that somebody declared; they stand in the certificate"}
    for name, text in lines.items():
        typer.echo(f"  {name:<10} {printable(text)}")


def _flowing(text: str) -> str:
    """A text for a terminal of any width: each paragraph one line, but for examples, which are indented."""
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(part if part.startswith(" ") else part.replace("\n", " ") for part in paragraphs)


class _Answered:
    """Turns what was raised into one sentence and an exit code."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        match error:
            case RefusedError():
                _end(f"Refused: {error}", REFUSED)
            case UsageError():
                _end(f"Usage error: {error}", error.exit_code)
            case CertifyError() | OSError():
                _end(f"Error: {error}", ERROR)


def _end(sentence: str, code: int) -> NoReturn:
    typer.echo(printable(sentence.rstrip(".") + "."), err=True)
    raise typer.Exit(code)


def _exist(*paths: Path | None) -> None:
    for path in paths:
        if path is not None and not path.exists():
            raise UsageError(f"{path}: no such file")
