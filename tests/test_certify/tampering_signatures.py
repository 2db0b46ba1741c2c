"""What a hand can do to a signature, and the X.509 certificates that are not good enough; with each, what the refusal must say."""

import json
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import model_signing

from certify.signoff import signature
from certify.signoff.keys import Signer
from tests.test_certify.release import DAY, NOW, Authority, Release

UNSIGNED, UNREADABLE = "the signature does not hold", "the signature cannot be read"
Words = Sequence[str]
Tampering = Callable[[Release], Words | None]  # words: the command line, if it is another one


def wrong_key(release: Release) -> Words:
    return [*release.words[:-1], f"--public-key={release.room / 'other.pub'}"]


def unsigned(release: Release) -> None:
    release.signature.unlink()


def signature_of_another_file(release: Release) -> None:
    other = release.room / "other.json"
    other.write_text("{}")
    release.signature.write_bytes(signature.sign(other.read_bytes(), Signer(release.room / "key")))


def signature_that_ignores_all(release: Release) -> None:
    """model-signing verifies any file by it: what was signed is an empty directory, and that every path is to be ignored."""
    (release.room / "empty").mkdir()
    hashing = model_signing.hashing.Config().set_ignored_paths(paths=["."])
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=release.room / "key")
    config.set_hashing_config(hashing).sign(release.room / "empty", release.signature)
    trusting = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=release.room / "key.pub")
    trusting.verify(release.certificate, release.signature)


def signature_of_the_directory(release: Release) -> None:
    (release.room / "report").mkdir()
    (release.room / "report" / "certificate.json").write_bytes(release.certificate.read_bytes())
    config = model_signing.signing.Config().use_elliptic_key_signer(private_key=release.room / "key")
    config.sign(release.room / "report", release.signature)


def hostile_signature(content: bytes) -> Tampering:
    return lambda release: release.signature.write_bytes(content) and None


def _rewritten(release: Release, change: Callable[[dict[str, Any]], object]) -> None:
    bundle = json.loads(release.signature.read_bytes())
    change(bundle)
    release.signature.write_text(json.dumps(bundle))


def two_signatures(release: Release) -> None:
    _rewritten(release, lambda bundle: bundle["dsseEnvelope"]["signatures"].append(bundle["dsseEnvelope"]["signatures"][0]))


def no_base64(release: Release) -> None:
    _rewritten(release, lambda bundle: bundle["dsseEnvelope"].update(payload=bundle["dsseEnvelope"]["payload"] + "\n"))


def another_payload_type(release: Release) -> None:
    _rewritten(release, lambda bundle: bundle["dsseEnvelope"].update(payloadType="text/plain"))


def huge_signature(release: Release) -> None:
    os.truncate(release.signature, signature.SIGNATURE_MAX + 1)


def _x509(release: Release, *, root: str = "root", signer: str | None = None, **issued: Any) -> Words:
    authority = Authority(release.room)
    authority.issue("root", None)
    authority.issue("elsewhere", None)
    desk = authority.issue("desk", "root", **issued)
    signing = Signer(release.room / "desk", signing_certificate=desk)
    release.signature.write_bytes(signature.sign(release.certificate.read_bytes(), signing))
    return [*release.words[:-1], f"--root={release.room / root}.pem", *([f"--signer={signer}"] if signer else [])]


def expired(release: Release) -> Words:
    """model-signing takes it all the same: it looks at the day on which the certificate began."""
    words = _x509(release, start=NOW - 8 * DAY, stop=NOW - timedelta(minutes=1))
    trusting = model_signing.verifying.Config().use_certificate_verifier(certificate_chain=[release.room / "root.pem"])
    trusting.verify(release.certificate, release.signature)
    return words


def two_chains(release: Release) -> Words:
    """An expired signer under the spelling that we read, a valid one under the library's other spelling: both must mean the same."""
    words = expired(release)
    valid = Authority(release.room).issue("boss", "root").read_text().replace("\n", "")
    raw = valid.removeprefix("-----BEGIN CERTIFICATE-----").removesuffix("-----END CERTIFICATE-----")
    chain = {"certificates": [{"raw_bytes": raw}]}
    _rewritten(release, lambda bundle: bundle["verificationMaterial"].update(x509_certificate_chain=chain))
    return words


def not_yet_valid(release: Release) -> Words:
    return _x509(release, start=NOW + DAY)


def another_root(release: Release) -> Words:
    return _x509(release, root="elsewhere")


def another_signer(release: Release) -> Words:
    return _x509(release, signer="boss@example.org")


def certificate_not_for_signing(release: Release) -> Words:
    return _x509(release, signs=False)


def key_where_x509_is_demanded(release: Release) -> Words:
    words = _x509(release)
    release.sign()
    return words


def x509_where_a_key_is_demanded(release: Release) -> Words:
    _x509(release)
    return release.words


CASES: list[tuple[Tampering, str]] = [
    (wrong_key, UNSIGNED),
    (unsigned, "the certificate is not signed: there is no"),
    (signature_of_another_file, UNSIGNED),
    (signature_that_ignores_all, "it was made for something else than this one file"),
    (signature_of_the_directory, UNSIGNED),
    (hostile_signature(b"{}"), UNREADABLE),
    (hostile_signature(b"\xff"), UNREADABLE),
    (hostile_signature(b"[" * 100_000), UNREADABLE),
    (hostile_signature(b'{"verificationMaterial": {"publicKey": {}}, "dsseEnvelope": {}}'), UNREADABLE),
    (two_signatures, UNREADABLE),
    (no_base64, UNREADABLE),
    (another_payload_type, UNSIGNED),
    (huge_signature, "at most 1,048,576 are read"),
    (expired, "does not hold today: certificate has expired"),
    (not_yet_valid, "does not hold today: certificate is not yet valid"),
    (another_root, UNSIGNED),
    (two_chains, "does not hold today: certificate has expired"),
    (another_signer, "is that of CN=desk = desk@example.org, not of boss@example.org"),
    (certificate_not_for_signing, "cannot be used for signing"),
    (key_where_x509_is_demanded, UNSIGNED),
    (x509_where_a_key_is_demanded, UNSIGNED),
]
