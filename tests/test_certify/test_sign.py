"""`lora-certify sign`: what it signs, with which keys, and that clients which are not ours verify it."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import model_signing
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from certify.signoff.commands import PASSWORD
from tests.test_certify.front_checkpoint import make
from tests.test_certify.release import Authority, Release, call, write_key


def test_round_trip(release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    release.signature.unlink()
    before = release.certificate.read_bytes()
    assert call(["sign", str(release.certificate), f"--private-key={release.room / 'key'}"], monkeypatch) == 0
    assert release.certificate.read_bytes() == before
    signed = capsys.readouterr().out
    assert call(release.words, monkeypatch) == 0
    told = capsys.readouterr().out
    assert "CERTIFIED(layers)" in told
    digest = [line.split()[1] for line in told.splitlines() if line.startswith("  digest")]
    assert digest == [line.split()[1] for line in signed.splitlines() if line.startswith("  digest")]
    assert "  base       base   unknown\n" in told
    assert "all 4 as certified" in told
    assert sorted(path.name for path in release.room.iterdir() if path.suffix == ".partial") == []


def test_a_name_that_no_file_can_have_is_not_signed(
    release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    release.restate(lambda stated: stated["subject"].append({"name": "a\ud800", "digest": {"sha256": "0" * 64}}))
    release.signature.unlink()
    assert call(["sign", str(release.certificate), f"--private-key={release.room / 'key'}"], monkeypatch) == 1
    assert r"'a\ud800' is no path inside a directory" in capsys.readouterr().err
    assert not release.signature.exists()


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_other_curves_and_other_places(curve: ec.EllipticCurve, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    write_key(release.room / "key", curve)
    out = release.room / "elsewhere.sig"
    assert call(["sign", str(release.certificate), f"--private-key={release.room / 'key'}", f"--out={out}"], monkeypatch) == 0
    assert call([*release.words, f"--signature={out}"], monkeypatch) == 0


def test_an_encrypted_key_needs_its_password(release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_key(release.room / "key", password=b"open sesame")
    words = ["sign", str(release.certificate), f"--private-key={release.room / 'key'}"]
    assert call(words, monkeypatch) == 4
    monkeypatch.setenv(PASSWORD, "wrong")
    assert call(words, monkeypatch) == 4
    assert capsys.readouterr().err.count("cannot sign") == 2
    monkeypatch.setenv(PASSWORD, "open sesame")
    assert call(words, monkeypatch) == 0
    assert call(release.words, monkeypatch) == 0


def test_x509_chain(release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    authority = Authority(release.room)
    root, between, desk = authority.issue("root", None), authority.issue("between", "root"), authority.issue("desk", "between")
    words = ["sign", str(release.certificate), f"--private-key={release.room / 'desk'}", f"--signing-certificate={desk}"]
    assert call([*words, f"--certificate-chain={between}"], monkeypatch) == 0
    trusting = [*release.words[:-1], f"--root={root}"]
    for name in ([], ["--signer=CN=desk"], ["--signer=desk@example.org"]):
        assert call([*trusting, *name], monkeypatch) == 0
    assert "signed by  CN=desk = desk@example.org, until" in capsys.readouterr().out
    verified = [sys.executable, "-m", "model_signing", "verify", "certificate", str(release.certificate)]
    verified += ["--signature", str(release.signature), "--certificate_chain", str(root)]
    assert subprocess.run(verified, capture_output=True, check=True, text=True).stdout.strip() == "Verification succeeded"


def test_nothing_but_certified_is_signed(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    release.restate(lambda stated: stated["predicate"].update(verdict="INCOMPLETE"))
    release.signature.unlink()
    assert call(["sign", str(release.certificate), f"--private-key={release.room / 'key'}"], monkeypatch) == 1
    assert not release.signature.exists()


def test_usage(release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (release.room / "nonsense").write_text("-----BEGIN PRIVATE KEY-----")
    certificate = str(release.certificate)
    for words, told in (
        ([certificate], "--private-key"),
        ([certificate, "--private-key=none"], "none: no such file"),
        (["none", f"--private-key={release.room / 'key'}"], "none: no such file"),
        ([certificate, f"--private-key={release.room / 'nonsense'}"], "cannot sign"),
        (
            [certificate, f"--private-key={release.room / 'key'}", f"--certificate-chain={certificate}"],
            "belongs to a --signing-certificate",
        ),
    ):
        assert call(["sign", *words], monkeypatch) == 4
        assert told in capsys.readouterr().err


def test_without_the_extra(release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert call(["sign", str(release.certificate), f"--private-key={release.room / 'key'}"], monkeypatch) == 4
    assert call(release.words, monkeypatch) == 4
    assert capsys.readouterr().err.count("pip install 'mergegate[sign]'") == 2


def test_model_signings_command_verifies_ours_and_we_verify_its(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = release.room / "key", str(release.certificate)
    command = [sys.executable, "-m", "model_signing", "verify", "key", certificate, "--signature", str(release.signature)]
    subprocess.run([*command, "--public_key", f"{key}.pub"], check=True, capture_output=True)
    assert subprocess.run([*command, "--public_key", str(release.room / "other.pub")], check=False, capture_output=True).returncode == 1
    release.signature.unlink()
    model_signing.signing.Config().use_elliptic_key_signer(private_key=key).sign(certificate, release.signature)
    assert call(release.words, monkeypatch) == 0


def test_securesystemslib_and_openssl_verify_the_envelope(release: Release) -> None:
    stored = json.loads(release.signature.read_text())["dsseEnvelope"]
    raw = base64.b64decode(stored["signatures"][0]["sig"])
    envelope = Envelope.from_dict(stored)
    pem = (release.room / "key.pub").read_text()
    scheme = {"keytype": "ecdsa", "scheme": "ecdsa-sha2-nistp256"}
    envelope.verify([SSlibKey("", scheme["keytype"], scheme["scheme"], {"public": pem})], 1)
    (release.room / "pae").write_bytes(envelope.pae())
    (release.room / "der").write_bytes(raw)
    command = ["openssl", "dgst", "-sha256", "-verify", "key.pub", "-signature", "der", "pae"]
    assert subprocess.run(command, cwd=release.room, check=True, capture_output=True, text=True).stdout.strip() == "Verified OK"


def test_in_totos_own_library_reads_the_certificate(release: Release) -> None:
    parsed = json_format.Parse(release.certificate.read_text(), statement_pb2.Statement())
    Statement.copy_from_pb(parsed).validate()
    assert [subject.name for subject in parsed.subject] == sorted(path.name for path in release.merged.iterdir())


def test_a_red_merge_has_no_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from certify import judge

    question = make(tmp_path, red=True)
    (tmp_path / "certificate.json").write_text(judge(question.base, question.adapter, question.merged, level="weights").to_json())
    write_key(tmp_path / "key")
    assert call(["sign", str(tmp_path / "certificate.json"), f"--private-key={tmp_path / 'key'}"], monkeypatch) == 1
    assert "Refused: the verdict is REJECTED: 1 merged tensor is wrong" in capsys.readouterr().err
