"""Signatures by a key of one's own: an elliptic key pair, or an X.509 certificate that leads to a named root.

model-signing checks an X.509 chain at the time when the signing certificate began. Here the chain must also hold now.
"""

import base64
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from certify.errors import RefusedError, UsageError
from certify.signoff.signature import plain, told


@dataclass(frozen=True, slots=True)
class Signer:
    """PEM files: a private key (NIST P-256, P-384 or P-521); for X.509 also its certificate and those between it and the root."""

    private_key: Path
    password: bytes | None = None
    signing_certificate: Path | None = None
    chain: tuple[Path, ...] = ()

    def configure(self, library: SimpleNamespace) -> Any:
        """model-signing's configuration. Raises UsageError for a key or a certificate that cannot be used."""
        config = library.signing.Config()
        try:
            if self.signing_certificate is None:
                return config.use_elliptic_key_signer(private_key=self.private_key, password=self.password)
            return config.use_certificate_signer(
                private_key=self.private_key,
                signing_certificate=self.signing_certificate,
                certificate_chain=self.chain or (self.signing_certificate,),  # the library refuses none; once more does no harm
            )
        except (OSError, ValueError, TypeError, AttributeError) as error:  # TypeError: an encrypted key; AttributeError: no elliptic curve
            raise UsageError(f"{self.private_key} cannot sign: {error}") from error


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

    def configure(self, library: SimpleNamespace) -> Any:
        """model-signing's configuration. Raises UsageError for a key or a root that cannot be used."""
        config = library.verifying.Config()
        try:
            if self.public_key is not None:
                return config.use_elliptic_key_verifier(public_key=self.public_key)
            if not self.roots:
                raise ValueError("no root was named")
            return config.use_certificate_verifier(certificate_chain=[*self.roots])
        except (OSError, ValueError, AttributeError) as error:
            raise UsageError(f"{self.public_key or 'a root'} is no public key or certificate that can be used: {error}") from error

    def material(self, found: Any) -> dict[str, Any]:
        """A key's name or a chain of certificates, and no entry of a log. Raises ValueError, KeyError, TypeError for anything else."""
        match found:
            case {"publicKey": {"hint": str(hint)}}:
                return {"publicKey": {"hint": hint}, "tlogEntries": []}
            case {"x509CertificateChain": {"certificates": [_, *_] as chain}}:
                certificates = [{"rawBytes": plain(one["rawBytes"])} for one in chain]
                return {"x509CertificateChain": {"certificates": certificates}, "tlogEntries": []}
        raise ValueError("it is no bundle with one signature by a key or an X.509 certificate")

    def holder(self, material: dict[str, Any], library: SimpleNamespace) -> str:
        """The key, or the name in the signing certificate, if its chain holds today and it is the name that was asked for."""
        if self.public_key is not None:
            return f"key {material['publicKey']['hint']}"
        raw = [base64.b64decode(entry["rawBytes"]) for entry in material["x509CertificateChain"]["certificates"]]
        signing, *between = [library.x509.load_der_x509_certificate(data) for data in raw]
        store, as_openssl = library.crypto.X509Store(), library.crypto.X509.from_cryptography
        for path in self.roots:
            for root in library.x509.load_pem_x509_certificates(path.read_bytes()):
                store.add_cert(as_openssl(root))
        try:
            library.crypto.X509StoreContext(store, as_openssl(signing), [as_openssl(one) for one in between]).verify_certificate()
        except library.crypto.X509StoreContextError as error:
            raise RefusedError(f"the signature's X.509 certificate does not hold today: {told(error)}") from error
        names = [signing.subject.rfc4514_string(), *_alternatives(signing, library)]
        if self.signer is not None and self.signer not in names:
            raise RefusedError(f"the signature is that of {' = '.join(names)}, not of {self.signer}")
        return f"{' = '.join(names)}, until {signing.not_valid_after_utc:%Y-%m-%d}"


def _alternatives(certificate: Any, library: SimpleNamespace) -> list[str]:
    """The e-mail addresses, DNS names and URIs that a certificate was issued for."""
    try:
        found = certificate.extensions.get_extension_for_class(library.x509.SubjectAlternativeName).value
    except library.x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in found if isinstance(name.value, str)]
