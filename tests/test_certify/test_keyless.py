"""Signing and verifying with sigstore: the real library up to where its network begins, and the sentence where there is none."""

import base64
import inspect
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from model_signing._signing import sign_sigstore
from sigstore import dsse, models, oidc, sign
from sigstore import verify as verifying
from sigstore.errors import TUFError, VerificationError

from tests.test_certify.release import Authority, Release, call

IDENTITY = ["--identity=release@example.org", "--identity-provider=https://accounts.google.com"]


# What sigstore's servers say of themselves: roots, and addresses.
SERVERS = SimpleNamespace(trusted_root=None, signing_config=SimpleNamespace(get_oidc_url=lambda: "https://oauth2.sigstore.dev/auth"))


@pytest.fixture
def words(release: Release) -> list[str]:
    return [*release.words[:-1], "--sigstore", *IDENTITY]


@pytest.fixture
def reached(release: Release, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Sigstore's servers, in this process: whoever comes is release@example.org, and the log takes everything."""
    seen: dict[str, Any] = {}
    desk = Authority(release.room).issue("desk", None)
    pem = b"".join(desk.read_bytes().splitlines()[1:-1])

    class Desk:
        def __enter__(self) -> "Desk":
            return self

        def __exit__(self, *_: object) -> None: ...

        def sign_dsse(self, statement: dsse.Statement) -> models.Bundle:
            return models.Bundle.from_json(json.dumps(_bundle(statement._contents, pem.decode())))

    class Context:
        def signer(self, token: object) -> Desk:
            seen["token"] = token
            return Desk()

    def checked(_self: object, bundle: models.Bundle, policy: object) -> tuple[str, bytes]:
        seen["policy"] = policy
        held = json.loads(bundle.to_json())["dsseEnvelope"]
        if seen.get("refuses"):
            raise VerificationError("the certificate is not for this identity")
        return held["payloadType"], base64.b64decode(held["payload"])

    monkeypatch.setattr(models.ClientTrustConfig, "production", classmethod(lambda *_, **__: SERVERS))
    monkeypatch.setattr(sign.SigningContext, "from_trust_config", classmethod(lambda *_: Context()))
    monkeypatch.setattr(oidc, "Issuer", lambda _: None)
    monkeypatch.setattr(oidc, "detect_credential", lambda _: "token")
    monkeypatch.setattr(oidc, "IdentityToken", lambda raw, _: raw)
    monkeypatch.setattr(verifying.Verifier, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(verifying.Verifier, "verify_dsse", checked)
    return seen


def _bundle(statement: bytes, certificate: str) -> dict[str, Any]:
    proof = {"logIndex": "1", "rootHash": "AAAA", "treeSize": "2", "hashes": [], "checkpoint": {"envelope": "-"}}
    entry = {
        **{"logIndex": "1", "logId": {"keyId": "AAAA"}, "kindVersion": {"kind": "dsse", "version": "0.0.1"}},
        **{"integratedTime": str(int(datetime.now(UTC).timestamp())), "inclusionPromise": {"signedEntryTimestamp": "AAAA"}},
        **{"inclusionProof": proof, "canonicalizedBody": "AAAA"},
    }
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"certificate": {"rawBytes": certificate}, "tlogEntries": [entry]},
        "dsseEnvelope": {
            "payload": base64.b64encode(statement).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": "AAAA"}],
        },
    }


def test_a_login_signs_and_an_identity_verifies(
    release: Release, words: list[str], reached: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["sign", str(release.certificate), "--sigstore"], monkeypatch) == 0
    assert reached["token"] == "token"
    assert call(words, monkeypatch) == 0
    assert isinstance(reached["policy"], verifying.policy.Identity)
    assert "signed by  release@example.org, as https://accounts.google.com says" in capsys.readouterr().out
    certificate = release.certificate.read_bytes()
    release.certificate.write_bytes(certificate + b"\n")
    assert call(words, monkeypatch) == 1
    release.certificate.write_bytes(certificate)
    reached["refuses"] = True
    assert call(words, monkeypatch) == 1
    assert "the certificate is not for this identity" in capsys.readouterr().err


def test_a_signature_by_a_key_is_none_by_a_login(
    release: Release, words: list[str], reached: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(words, monkeypatch) == 1
    assert "was not made with sigstore" in capsys.readouterr().err
    assert call(["sign", str(release.certificate), "--sigstore"], monkeypatch) == 0
    assert call(release.words, monkeypatch) == 1
    assert "policy" not in reached


@pytest.mark.parametrize("error", [TUFError("Failed to refresh TUF metadata"), requests.ConnectionError("no route"), oidc.IssuerError("?")])
def test_offline_it_says_so(
    error: Exception, release: Release, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(models.ClientTrustConfig, "production", offline)
    assert call(["sign", str(release.certificate), "--sigstore"], monkeypatch) == 3
    assert call(words, monkeypatch) == 3
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in told] == ["Error: sigstore needs the network, and cannot be used from here"] * 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (EOFError("EOF when reading a line"), "Error: sigstore asks for the code of a login, and nobody answers here"),
        (oidc.IdentityError("Identity token is malformed"), "Error: sigstore does not take this login (Identity token is malformed)"),
        (PermissionError(13, "Permission denied", "/home/.sigstore"), "Error: [Errno 13] Permission denied: '/home/.sigstore'"),
    ],
)
def test_the_network_is_not_blamed_for_everything(
    error: Exception, told: str, release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(models.ClientTrustConfig, "production", fails)
    assert call(["sign", str(release.certificate), "--sigstore"], monkeypatch) == 3
    assert capsys.readouterr().err.startswith(told)


def test_the_library_takes_what_it_is_given() -> None:
    inspect.signature(sign_sigstore.Signer).bind(use_ambient_credentials=True)
    inspect.signature(sign_sigstore.Verifier).bind(identity="release@example.org", oidc_issuer="https://accounts.google.com")


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (["--sigstore"], "belong together"),
        (["--sigstore", IDENTITY[0]], "belong together"),
        (["--public-key=key.pub", "--sigstore", *IDENTITY], "either --public-key or --root or --sigstore"),
    ],
)
def test_usage(extra: list[str], told: str, release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(release.room)
    assert call([*release.words[:-1], *extra], monkeypatch) == 4
    assert told in capsys.readouterr().err
