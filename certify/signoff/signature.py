"""The signature of one certificate file, made and checked by the model-signing library, whoever is trusted: a key, an X.509 root, sigstore.

The signature is a sigstore bundle (DSSE envelope, in-toto statement) that model-signing's own command verifies as well. Library and
arguments are public API of model-signing 1.1; what the library leaves open is closed here and in `certify.signoff.keys`:

* Without roots it trusts every authority of the web. Here roots are named, always.
* It compares the file with whatever the signed manifest lists. Here that must be this one file and its sha256.
"""

import base64
import hashlib
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from certify.errors import RefusedError, UsageError

SIGNATURE_MAX = 1 << 20  # bytes; a chain of three certificates makes about 6 KiB
SUBJECT = "certificate.json"  # what the signed manifest calls the file, whatever its name is on disk


class Signing(Protocol):
    """Who signs."""

    def configure(self, library: SimpleNamespace) -> Any:
        """model-signing's configuration. Raises UsageError for what cannot sign."""


class Trusted(Protocol):
    """Who must have signed. files: where that is said on disk"""

    @property
    def files(self) -> tuple[Path, ...]: ...

    def configure(self, library: SimpleNamespace) -> Any:
        """model-signing's configuration. Raises UsageError for what cannot be trusted."""

    def material(self, found: Any) -> dict[str, Any]:
        """What of a bundle's verification material reaches the library. Raises ValueError, KeyError, TypeError for another kind."""

    def holder(self, material: dict[str, Any], library: SimpleNamespace) -> str:
        """The name of who signed, once the library has found the signature good. Raises RefusedError."""


def sign(certificate: bytes, signer: Signing) -> bytes:
    """A sigstore bundle over these bytes. Raises UsageError for a key that cannot be used, CertifyError where nobody is reached."""
    config = signer.configure(_library())
    with tempfile.TemporaryDirectory(prefix="certify-") as room:
        copy, made = Path(room, SUBJECT), Path(room, "signature")
        copy.write_bytes(certificate)
        config.sign(copy, made)
        return made.read_bytes()


def check(certificate: bytes, signature: bytes, trust: Trusted) -> str:
    """Who signed these bytes. Raises RefusedError where nobody that is trusted did, UsageError for a key that cannot be used."""
    library = _library()
    config, bundle = trust.configure(library), _bundle(signature, trust)
    with tempfile.TemporaryDirectory(prefix="certify-") as room:  # the very bytes that are judged, whatever happens to the files meanwhile
        copy, envelope = Path(room, SUBJECT), Path(room, "signature")
        copy.write_bytes(certificate)
        envelope.write_text(json.dumps(bundle))
        try:
            config.verify(copy, envelope)
        except Exception as error:  # ValueError, InvalidSignature, KeyError, X509StoreContextError …
            raise RefusedError(f"the signature does not hold: {told(error)}") from error
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    if payload["predicate"]["resources"] != [{"name": ".", "algorithm": "sha256", "digest": hashlib.sha256(certificate).hexdigest()}]:
        raise RefusedError("the signature does not hold: it was made for something else than this one file")
    return trust.holder(bundle["verificationMaterial"], library)


def _bundle(raw: bytes, trust: Trusted) -> dict[str, Any]:
    """What of a signature file reaches the library: what is looked at here, in one spelling, and nothing else. Raises RefusedError."""
    try:
        match json.loads(raw):
            case {
                "mediaType": str(kind),
                "verificationMaterial": {**found},
                "dsseEnvelope": {"payload": str(payload), "payloadType": str(type_), "signatures": [{"sig": str(sig)}]},
            }:
                envelope = {"payload": plain(payload), "payloadType": type_, "signatures": [{"sig": plain(sig), "keyid": ""}]}
                return {"mediaType": kind, "verificationMaterial": trust.material(found), "dsseEnvelope": envelope}
        raise ValueError("it is no bundle with one signature by a key or an X.509 certificate")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RefusedError(f"the signature cannot be read: {told(error)}") from error


def plain(text: str) -> str:
    """base64 in its one spelling. Raises ValueError."""
    return base64.b64encode(base64.b64decode(text, validate=True)).decode()


def told(error: Exception) -> str:
    """A library's complaint as part of a sentence."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _library() -> SimpleNamespace:
    """Imported where it is needed: the gate itself works without."""
    try:
        import requests
        import sigstore.errors
        import sigstore.oidc
        from cryptography import x509
        from model_signing import signing, verifying
        from OpenSSL import crypto
    except ImportError as error:
        raise UsageError(f"signatures need the extra `sign`: pip install 'mergegate[sign]' ({error})") from error
    unreached = (requests.RequestException, ConnectionError, TimeoutError)
    return SimpleNamespace(x509=x509, signing=signing, verifying=verifying, crypto=crypto, sigstore=sigstore, unreached=unreached)
