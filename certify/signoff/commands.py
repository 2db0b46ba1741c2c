"""`lora-certify sign`, `verify` and `compare` as a command line sees them: options in, sentences and exit codes out."""

import json
import os
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from certify.errors import CertifyError, RefusedError, UsageError
from certify.report.text import figure, human, printable
from certify.request import LEVELS
from certify.signoff.signature import Signer, Trust

if TYPE_CHECKING:
    from certify.signoff.stated import Stated

REFUSED, ERROR = 1, 3
PASSWORD = "LORA_CERTIFY_KEY_PASSWORD"
EXITS = "Exit codes: 0 {done} · 1 refused, and the sentence says why · 3 ERROR, the tool itself failed · 4 usage"

Certificate = Annotated[Path, typer.Argument(metavar="CERTIFICATE", help="certificate.json, as the gate wrote it.")]
Level = Annotated[
    str, typer.Option(metavar="|".join(LEVELS), autocompletion=lambda: [*LEVELS], help="The least level that is enough.", show_default=True)
]


def sign(
    certificate: Certificate,
    private_key: Annotated[Path, typer.Option(metavar="FILE", help="PEM, NIST P-256, P-384 or P-521.")],
    signing_certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM, the X.509 certificate of that key.")] = None,
    certificate_chain: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="PEM, between it and the root; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", show_default="CERTIFICATE.sig", help="The signature.")] = None,
) -> None:
    """Sign a certificate: "I have read it, and I release what it names".

    Only a certificate that says CERTIFIED is signed. It stays as it is; the signature, a sigstore bundle, is written beside it, and
    model-signing's own command can verify it as well.

    An encrypted key is opened with the password in the environment variable LORA_CERTIFY_KEY_PASSWORD (not with an X.509
    certificate: model-signing 1.1.1 cannot). Keyless signing with sigstore is not built in.

    A key pair, and a signature:

      openssl ecparam -name prime256v1 -genkey -noout -out KEY
      openssl ec -in KEY -pubout -out KEY.pub
      lora-certify sign REPORT/certificate.json --private-key KEY
    """
    with _Answered():
        from certify.inputs.folder import listing_digest
        from certify.inputs.strict_json import JSON_MAX
        from certify.signoff import signature
        from certify.signoff.regular import content
        from certify.signoff.stated import stated
        from certify.signoff.verify import CERTIFIED

        _exist(certificate, private_key, signing_certificate, *(certificate_chain or []))
        if certificate_chain and signing_certificate is None:
            raise UsageError("--certificate-chain belongs to a --signing-certificate")
        raw = content(certificate, JSON_MAX)
        told = stated(raw)
        if told.verdict != CERTIFIED:
            raise RefusedError(f"the verdict is {told.verdict}: {told.reason}")
        password = os.environ.get(PASSWORD)
        signer = Signer(private_key, password.encode() if password else None, signing_certificate, tuple(certificate_chain or ()))
        target = out or certificate.with_name(f"{certificate.name}.sig")
        partial = target.with_name(f"{target.name}.partial")
        partial.write_bytes(signature.sign(raw, signer))
        partial.replace(target)
        typer.echo(f"Signed: {told.verdict}({told.level}). The signature is {target}.")
        _show(told, {"files": figure(len(told.subjects)), "digest": listing_digest(told.subjects)})


def verify(
    merged: Annotated[Path, typer.Argument(metavar="MERGED", help="The directory that is to be deployed.")],
    certificate: Annotated[Path, typer.Option(metavar="FILE", help="Its certificate.json, which lies outside of it.")],
    public_key: Annotated[Path | None, typer.Option(metavar="FILE", help="PEM, the key that must have signed.")] = None,
    root: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="PEM, X.509 root instead of a key; repeatable.")] = None,
    signer: Annotated[str | None, typer.Option(metavar="NAME", help="With --root: whose X.509 certificate it must be.")] = None,
    signature: Annotated[Path | None, typer.Option(metavar="FILE", show_default="CERTIFICATE.sig", help="The signature.")] = None,
    expect_digest: Annotated[str | None, typer.Option(metavar="D", help="Folder digest that MERGED must have: this very release.")] = None,
    level: Level = "layers",
    allow_claimed: Annotated[bool, typer.Option("--allow-claimed", help="Let an adapter pass that only MERGED itself named.")] = False,
) -> None:
    """Say whether a merged directory may be deployed: exit code 0, or one sentence that says why not.

    In this order: the signature is by the key, or by an X.509 certificate that leads to a root, today; the verdict is CERTIFIED; the
    level is high enough; the adapter was given to the gate, not found by a claim of the merged directory; the folder digest is the
    expected one; MERGED holds exactly the files that were certified, hidden ones included, and no symbolic link; the sha256 of each,
    computed anew, is the certified one. Every byte of MERGED is read once, by several threads.

    NAME is the subject of the X.509 certificate as RFC 4514 writes it (CN=Release Desk,O=Example), or an e-mail address, a DNS name
    or a URI that it was issued for. Without it, whoever holds any certificate under the root can sign.

    The folder digest is the sha256 of the sorted lines "sha256, two spaces, relative path". It says which release is meant: without it,
    any directory that was ever certified and signed passes with its own certificate.

    Nothing is written. Whoever can write to MERGED can change it afterwards: mount it read-only.

      lora-certify verify MERGED --certificate REPORT/certificate.json --public-key KEY.pub
      lora-certify verify MERGED --certificate certificate.json --root ROOT.pem --signer release@example.org
    """
    with _Answered():
        from certify.signoff.verify import Demand
        from certify.signoff.verify import verify as verified

        if not merged.is_dir():
            raise UsageError(f"{merged}: no such directory")
        _exist(certificate, public_key, *(root or []))
        if (public_key is None) == (not root):
            raise UsageError("give either --public-key or --root")
        if signer is not None and not root:
            raise UsageError("--signer belongs to --root")
        bundle = signature or certificate.with_name(f"{certificate.name}.sig")
        found = verified(
            merged, certificate, bundle, Trust(public_key, tuple(root or ()), signer), Demand(level, expect_digest, allow_claimed)
        )
        told = found.certificate
        typer.echo(f"Verified: {merged.resolve()} is {told.verdict}({told.level})")
        files = f"all {figure(len(told.subjects))} as certified, {human(found.size)}"
        _show(told, {"files": files, "digest": found.digest, "signed by": found.signer})


def compare(
    before: Annotated[Path, typer.Argument(metavar="A", help="One certificate.json.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: everything that changed.")] = False,
) -> None:
    """Say what changed from certificate A to certificate B.

    Verdict, level, base, adapters, counts, versions; files by sha256; failures, accepted differences and what the loaders say that are
    new or gone; error / bound and retention of the tensors that either of them counts among its worst; retention of the whole.

    Signatures are not looked at. The exit code is 0 whatever changed; a script asks --json for "same".
    """
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
    for command, done in ((sign, "signed"), (verify, "verified"), (compare, "compared")):
        app.command(help=_flowing(command.__doc__ or ""), epilog=EXITS.format(done=done))(command)


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
    """A docstring for a terminal of any width: each paragraph one line, but for examples, which are indented."""
    paragraphs = cleandoc(text).split("\n\n")
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
