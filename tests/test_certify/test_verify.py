"""`lora-certify verify`: whatever a hand can do to a release after it was signed is refused, in one sentence that names it."""

import os
import sys
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certify.inputs.folder import folder_digest
from certify.signoff import directory
from certify.signoff.progress import Read
from tests.test_certify import tampering_files, tampering_signatures
from tests.test_certify.release import Release, call
from tests.test_certify.tampering_files import SHARD, Tampering, claimed

CASES = [*tampering_files.CASES, *tampering_signatures.CASES]


@pytest.mark.filterwarnings("ignore:The 'warn' method is deprecated:DeprecationWarning:model_signing")
@pytest.mark.parametrize(("tamper", "told"), CASES, ids=[f"{number} {case[1][:40]}" for number, case in enumerate(CASES, start=1)])
def test_refused(
    tamper: Tampering, told: str, release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tamper(release) or release.words
    assert call(words, monkeypatch) == 1
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("Refused: ")
    assert told in shown.err
    assert shown.err.count("\n") == 1


def test_what_is_no_tampering(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links outside of the merged directory, as Kubernetes mounts files, and a current -> v3 before it; other names."""
    (release.room / "current").symlink_to(release.merged)
    mounted = release.room / "mount"
    mounted.mkdir()
    (mounted / "cert").symlink_to(release.certificate)
    (mounted / "cert.sig").symlink_to(release.signature)
    words = ["verify", str(release.room / "current"), f"--certificate={mounted / 'cert'}", f"--public-key={release.room / 'key.pub'}"]
    assert call([*words, f"--expect-digest={folder_digest(release.merged)}", "--level=weights"], monkeypatch) == 0


def test_names_of_any_bytes(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not UTF-8 travels as a lone surrogate, as `Certificate.to_json` writes it."""
    for raw in (b"caf\xe9.txt", "café.txt".encode(), b"line\nbreak"):
        (Path(os.fsdecode(os.fsencode(release.merged) + b"/" + raw))).write_bytes(b"")
        empty = {"sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
        name = os.fsdecode(raw)
        release.restate(lambda stated, name=name, empty=empty: stated["subject"].append({"name": name, "digest": empty}))  # type: ignore[misc]
    assert call(release.words, monkeypatch) == 0


def test_claimed_may_be_allowed(release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    claimed(release)
    assert call([*release.words, "--allow-claimed"], monkeypatch) == 0
    assert "adapter    adapter   claimed" in capsys.readouterr().out


def test_usage_is_not_refusal(release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {"rsa": rsa.generate_private_key(65537, 2048), "ed25519": ed25519.Ed25519PrivateKey.generate()}
    for name, key in keys.items():
        (release.room / name).write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    bare = release.words[:-1]
    for words, told in (
        (bare, "either --public-key or --root"),
        ([*release.words, f"--root={release.certificate}"], "either --public-key or --root"),
        ([*bare, "--public-key=none"], "none: no such file"),
        ([*bare, f"--public-key={release.certificate}"], "no public key or certificate that can be used"),
        ([*bare, f"--public-key={release.room / 'rsa'}"], "no public key or certificate that can be used"),
        ([*bare, f"--public-key={release.room / 'ed25519'}"], "no public key or certificate that can be used"),
        ([*bare, f"--root={release.certificate}"], "no public key or certificate that can be used"),
        ([*release.words, "--signer=x"], "--signer belongs to --root"),
        ([*release.words, "--level=all"], "--level all: known are"),
        ([*release.words, "--expect-digest=short"], "64 hexadecimal digits"),
        (["verify", "none", *release.words[2:]], "none: no such directory"),
        ([*release.words, "--fast"], "--fast"),
    ):
        assert call(words, monkeypatch) == 4
        assert told in capsys.readouterr().err


def test_files_are_hashed_side_by_side(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    together, hashed = threading.Barrier(4), directory._sha256

    def waiting(path: Path, read: Read) -> str:
        together.wait(timeout=10)  # until all four files are being hashed
        return hashed(path, read)

    monkeypatch.setattr(directory, "_sha256", waiting)
    assert call(release.words, monkeypatch) == 0


def test_what_cannot_be_read_is_the_tools_failure(
    release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error", str(release.merged / SHARD))

    monkeypatch.setattr(directory, "_sha256", broken)
    assert call(release.words, monkeypatch) == 3
    assert "Input/output error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "offered"),
    [("lora-certify ver", "verify"), ("lora-certify verify --exp", "--expect-digest"), ("lora-certify verify --level ", "layers")],
)
def test_a_shell_completes(line: str, offered: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__package__", None)  # as the console script is, however pytest itself was started
    monkeypatch.setenv("_LORA_CERTIFY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    call([], monkeypatch)
    assert offered in capsys.readouterr().out.split()
