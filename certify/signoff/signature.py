"""The signature of one certificate file, made and checked by the model-signing library: a key pair, or an X.509 certificate.

The signature is a sigstore bundle (DSSE envelope, in-toto statement) that model-signing's own command verifies as well. Library and
arguments are public API of model-signing 1.1; what the library leaves open is closed here:

* It checks an X.509 chain at the time when the signing certificate began. Here the chain must also hold now.
* Without roots it trusts every authority of the web. Here roots are named, always.
* It compares the file with whatever the signed manifest lists. Here that must be this one file and its sha256.
"""

import base64
import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from certify.errors import RefusedError, UsageError

SIGNATURE_MAX = 1 << 20  # bytes; a chain of three certificates makes about 6 KiB
SUBJECT = "certificate.json"  # what the signed manifest calls the file, whatever its name is on disk


@dataclass(frozen=True, slots=True)
class Signer:
    """PEM files: a private key (NIST P-256, P-384 or P-521); for X.509 also its certificate and those between it and the root."""

    private_key: Path
    password: bytes | None = None
    signing_certificate: Path | None = None
    chain: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Trust:
    """PEM files: a public key, or the roots that an X.509 certificate must lead to; signer: whose certificate it must be, None: any."""

    public_key: Path | None = None
    roots: tuple[Path, ...] = ()
    signer: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """Where it lies on disk."""
        return self.roots if self.public_key is None else (self.public_key,)


def sign(certificate: bytes, signer: Signer) -> bytes:
    """A sigstore bundle over these bytes. Raises UsageError for a key or a certificate that cannot be used."""
    library = _library()
    config = library.signing.Config()
    try:
        if signer.signing_certificate is None:
            config.use_elliptic_key_signer(private_key=signer.private_key, password=signer.password)
        else:
            config.use_certificate_signer(
                private_key=signer.private_key,
                signing_certificate=signer.signing_certificate,
                certificate_chain=signer.chain or (signer.signing_certificate,),  # the library refuses none; once more does no harm
            )
    except (OSError, ValueError, TypeError, AttributeError) as error:  # TypeError: an encrypted key; AttributeError: no elliptic curve
        raise UsageError(f"{signer.private_key} cannot sign: {error}") from error
    with tempfile.TemporaryDirectory(prefix="certify-") as room:
        copy, made = Path(room, SUBJECT), Path(room, "signature")
        copy.write_bytes(certificate)
        config.sign(copy, made)
        return made.read_bytes()


def check(certificate: bytes, signature: bytes, trust: Trust) -> str:
    """Who signed these bytes. Raises RefusedError where nobody that is trusted did, UsageError for a key that cannot be used."""
    library = _library()
    config = library.verifying.Config()
    try:
        if trust.public_key is not None:
            config.use_elliptic_key_verifier(public_key=trust.public_key)
        else:
            config.use_certificate_verifier(certificate_chain=[*_named(trust.roots)])
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{trust.public_key or 'a root'} is no public key or certificate that can be used: {error}") from error
    bundle = _bundle(signature)
    with tempfile.TemporaryDirectory(prefix="certify-") as room:  # the very bytes that are judged, whatever happens to the files meanwhile
        copy, envelope = Path(room, SUBJECT), Path(room, "signature")
        copy.write_bytes(certificate)
        envelope.write_text(json.dumps(bundle))
        try:
            config.verify(copy, envelope)
        except Exception as error:  # ValueError, InvalidSignature, KeyError, X509StoreContextError …
            raise RefusedError(f"the signature does not hold: {_told(error)}") from error
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    if payload["predicate"]["resources"] != [{"name": ".", "algorithm": "sha256", "digest": hashlib.sha256(certificate).hexdigest()}]:
        raise RefusedError("the signature does not hold: it was made for something else than this one file")
    material = bundle["verificationMaterial"]
    return f"key {material['publicKey']['hint']}" if trust.public_key else _holder(material, trust, library)


def _bundle(raw: bytes) -> dict[str, Any]:
    """What of a signature file reaches the library: what is looked at here, in one spelling, and nothing else. Raises RefusedError."""
    try:
        match json.loads(raw):
            case {
                "mediaType": str(kind),
                "verificationMaterial": {"publicKey": {"hint": str(hint)}},
                "dsseEnvelope": {"payload": str(payload), "payloadType": str(type_), "signatures": [{"sig": str(sig)}]},
            }:
                material: dict[str, Any] = {"publicKey": {"hint": hint}}
            case {
                "mediaType": str(kind),
                "verificationMaterial": {"x509CertificateChain": {"certificates": [_, *_] as chain}},
                "dsseEnvelope": {"payload": str(payload), "payloadType": str(type_), "signatures": [{"sig": str(sig)}]},
            }:
                material = {"x509CertificateChain": {"certificates": [{"rawBytes": _base64(one["rawBytes"])} for one in chain]}}
            case _:
                raise ValueError("it is no bundle with one signature by a key or an X.509 certificate")
        envelope = {"payload": _base64(payload), "payloadType": type_, "signatures": [{"sig": _base64(sig), "keyid": ""}]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusedError(f"the signature cannot be read: {_told(error)}") from error
    return {"mediaType": kind, "verificationMaterial": material | {"tlogEntries": []}, "dsseEnvelope": envelope}


def _base64(text: str) -> str:
    return base64.b64encode(base64.b64decode(text, validate=True)).decode()


def _library() -> SimpleNamespace:
    """Imported where it is needed: the gate itself works without."""
    try:
        from cryptography import x509
        from model_signing import signing, verifying
        from OpenSSL import crypto
    except ImportError as error:
        raise UsageError(f"signatures need the extra `sign`: pip install 'mergegate[sign]' ({error})") from error
    return SimpleNamespace(x509=x509, signing=signing, verifying=verifying, crypto=crypto)


def _named(roots: tuple[Path, ...]) -> tuple[Path, ...]:
    if not roots:
        raise ValueError("no root was named")
    return roots


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _holder(material: dict[str, Any], trust: Trust, library: SimpleNamespace) -> str:
    """The name in the signing certificate, if its chain holds today and it is the name that was asked for."""
    raw = [base64.b64decode(entry["rawBytes"]) for entry in material["x509CertificateChain"]["certificates"]]
    signing, *between = [library.x509.load_der_x509_certificate(data) for data in raw]
    store, as_openssl = library.crypto.X509Store(), library.crypto.X509.from_cryptography
    for path in trust.roots:
        for root in library.x509.load_pem_x509_certificates(path.read_bytes()):
            store.add_cert(as_openssl(root))
    try:
        library.crypto.X509StoreContext(store, as_openssl(signing), [as_openssl(one) for one in between]).verify_certificate()
    except library.crypto.X509StoreContextError as error:
        raise RefusedError(f"the signature's X.509 certificate does not hold today: {_told(error)}") from error
    names = [signing.subject.rfc4514_string(), *_alternatives(signing, library)]
    if trust.signer is not None and trust.signer not in names:
        raise RefusedError(f"the signature is that of {' = '.join(names)}, not of {trust.signer}")
    return f"{' = '.join(names)}, until {signing.not_valid_after_utc:%Y-%m-%d}"


def _alternatives(certificate: Any, library: SimpleNamespace) -> list[str]:
    """The e-mail addresses, DNS names and URIs that a certificate was issued for."""
    try:
        found = certificate.extensions.get_extension_for_class(library.x509.SubjectAlternativeName).value
    except library.x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in found if isinstance(name.value, str)]
