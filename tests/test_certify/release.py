"""A release that was certified and signed, and what a tampering hand needs: other keys, X.509 certificates, signatures over anything."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from certify import judge
from certify.__main__ import main
from certify.signoff import signature
from certify.signoff.keys import Signer
from tests.test_certify.front_checkpoint import make

DAY = timedelta(days=1)
NOW = datetime.now(UTC)


@dataclass(frozen=True)
class Release:
    """merged/, certificate.json and its signature, key.pub and another key, side by side."""

    room: Path

    @property
    def merged(self) -> Path:
        return self.room / "merged"

    @property
    def certificate(self) -> Path:
        return self.room / "certificate.json"

    @property
    def signature(self) -> Path:
        return self.room / "certificate.json.sig"

    @property
    def statement(self) -> dict[str, Any]:
        stated: dict[str, Any] = json.loads(self.certificate.read_bytes())
        return stated

    @property
    def words(self) -> list[str]:
        return ["verify", str(self.merged), f"--certificate={self.certificate}", f"--public-key={self.room / 'key.pub'}"]

    def sign(self, key: str = "key") -> None:
        """What the certificate file holds, whatever it is: `lora-certify sign` would refuse most of it."""
        self.signature.write_bytes(signature.sign(self.certificate.read_bytes(), Signer(self.room / key)))

    def restate(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Change the statement, and have the owner of the key sign that."""
        stated = self.statement
        change(stated)
        self.certificate.write_text(json.dumps(stated))
        self.sign()

    def copy(self, room: Path) -> "Release":
        shutil.copytree(self.room, room, ignore=shutil.ignore_patterns("base", "adapter"))
        return Release(room)


def make_release(room: Path) -> Release:
    """Judged by the gate, signed by a P-256 key."""
    question = make(room)
    (room / "certificate.json").write_text(judge(question.base, question.adapter, question.merged).to_json())
    for name in ("key", "other"):
        write_key(room / name)
    release = Release(room)
    release.sign()
    return release


def call(words: Sequence[str], monkeypatch: Any) -> int:
    """`lora-certify` with these words, in this process; its exit code."""
    monkeypatch.setattr("sys.argv", ["lora-certify", *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def write_key(path: Path, curve: ec.EllipticCurve | None = None, password: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """A new key pair: `path`, and its public half in `path`.pub."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_name(f"{path.name}.pub").write_bytes(public)
    return key


@dataclass(frozen=True)
class Authority:
    """Root, intermediate and signing certificate with their keys, as PEM files in a directory: NAME.pem and NAME."""

    room: Path

    def issue(
        self, name: str, by: str | None, *, start: datetime = NOW - 9 * DAY, stop: datetime = NOW + 365 * DAY, signs: bool = True
    ) -> Path:
        """A certificate for NAME, whose key is made here; by None: a root."""
        key, ca = write_key(self.room / name), by is None or name.startswith("between")
        issuer = key if by is None else serialization.load_pem_private_key((self.room / by).read_bytes(), None)
        assert isinstance(issuer, ec.EllipticCurvePrivateKey)
        usage = dict.fromkeys(("content_commitment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False)
        usage |= {"crl_sign": ca, "key_cert_sign": ca, "digital_signature": signs and not ca, "key_encipherment": not signs}
        built = (
            x509.CertificateBuilder(subject_name=_name(name), issuer_name=_name(by or name), public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(stop)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
        )
        if not ca:
            built = built.add_extension(x509.SubjectAlternativeName([x509.RFC822Name(f"{name}@example.org")]), critical=False)
        path = self.room / f"{name}.pem"
        path.write_bytes(built.sign(issuer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
