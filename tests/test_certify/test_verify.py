"""`lora-certify verify`: whatever a hand can do to a release after it was signed is refused, in one sentence that names it."""

import json
import os
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import model_signing
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certify.inputs.folder import folder_digest
from certify.inputs.strict_json import JSON_MAX
from certify.signoff import directory, signature
from certify.signoff.signature import Signer
from tests.test_certify.release import DAY, NOW, Authority, Release, call

SHARD, CONFIG = "model-00001-of-00002.safetensors", "config.json"
Words = Sequence[str]
Tampering = Callable[[Release], Words | None]


def changed_byte(release: Release) -> None:
    with (release.merged / SHARD).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def truncated(release: Release) -> None:
    os.truncate(release.merged / SHARD, 100)


def added(release: Release) -> None:
    (release.merged / "modeling_llama.py").write_text("import os")


def added_hidden(release: Release) -> None:
    (release.merged / ".gitattributes").write_text("")


def added_below(release: Release) -> None:
    (release.merged / "onnx").mkdir()
    (release.merged / "onnx" / "model.onnx").write_bytes(b"")


def missing(release: Release) -> None:
    (release.merged / SHARD).unlink()


def exchanged(release: Release) -> None:
    first, second = release.merged / SHARD, release.merged / SHARD.replace("1-of", "2-of")
    first.rename(release.room / "first")
    second.rename(first)
    (release.room / "first").rename(second)


def swapped_certificate(release: Release) -> None:
    """That of another release, signed by the same desk."""
    other = {"name": SHARD, "digest": {"sha256": "0" * 64}}
    release.restate(lambda stated: stated.update(subject=[other if entry["name"] == SHARD else entry for entry in stated["subject"]]))


def raised_level(release: Release) -> None:
    stated = release.statement
    stated["predicate"]["level"] = "logits"
    release.certificate.write_text(json.dumps(stated))


def one_more_blank(release: Release) -> None:
    release.certificate.write_bytes(release.certificate.read_bytes() + b" ")


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


def higher_level_demanded(release: Release) -> Words:
    return [*release.words, "--level=logits"]


def predicate(**fields: Any) -> Tampering:
    return lambda release: release.restate(lambda stated: stated["predicate"].update(fields))


def statement(**fields: Any) -> Tampering:
    return lambda release: release.restate(lambda stated: stated.update(fields))


def subject(name: str, digest: str = "0" * 64) -> Tampering:
    return lambda release: release.restate(lambda stated: stated["subject"].append({"name": name, "digest": {"sha256": digest}}))


def claimed(release: Release) -> None:
    release.restate(lambda stated: stated["predicate"]["adapters"][0].update(claimed=True))


def link(release: Release) -> None:
    """The same bytes, today."""
    shard = release.merged / SHARD
    shard.rename(release.room / "elsewhere")
    shard.symlink_to(release.room / "elsewhere")


def linked_folder(release: Release) -> None:
    (release.merged / "more").symlink_to(release.room)


def pipe(release: Release) -> None:
    (release.merged / SHARD).unlink()
    os.mkfifo(release.merged / SHARD)


def certificate_inside(release: Release) -> Words:
    for path in (release.certificate, release.signature):
        path.rename(release.merged / path.name)
    return [word.replace(str(release.certificate), str(release.merged / "certificate.json")) for word in release.words]


def certificate_inside_by_a_link(release: Release) -> None:
    release.certificate.rename(release.merged / "certificate.json")
    release.certificate.symlink_to(release.merged / "certificate.json")


def signature_inside(release: Release) -> Words:
    release.signature.rename(release.merged / "signature")
    return [*release.words, f"--signature={release.merged / 'signature'}"]


def key_inside(release: Release) -> Words:
    (release.room / "key.pub").rename(release.merged / "key.pub")
    return [*release.words[:-1], f"--public-key={release.merged / 'key.pub'}"]


def another_release_expected(release: Release) -> Words:
    return [*release.words, f"--expect-digest={'0' * 64}"]


def written(content: bytes) -> Tampering:
    """A hostile certificate that the owner of the key signed all the same."""

    def tamper(release: Release) -> None:
        release.certificate.write_bytes(content)
        release.sign()

    return tamper


def two_verdicts(release: Release) -> None:
    text = release.certificate.read_text().replace('"verdict": "CERTIFIED"', '"verdict": "REJECTED", "verdict": "CERTIFIED"')
    written(text.encode())(release)


def huge(release: Release) -> None:
    os.truncate(release.certificate, JSON_MAX + 1)


def pipe_as_certificate(release: Release) -> None:
    release.certificate.unlink()
    os.mkfifo(release.certificate)


UNSIGNED, UNREADABLE = "the signature does not hold", "the signature cannot be read"
CASES: list[tuple[Tampering, str]] = [
    (changed_byte, f"{SHARD} is not what was certified"),
    (truncated, f"{SHARD} is not what was certified"),
    (added, "modeling_llama.py is not certified"),
    (added_hidden, ".gitattributes is not certified"),
    (added_below, "onnx/model.onnx is not certified"),
    (missing, f"{SHARD} is missing"),
    (exchanged, f"{SHARD} and 1 more are not what was certified"),
    (swapped_certificate, f"{SHARD} is not what was certified"),
    (raised_level, UNSIGNED),
    (one_more_blank, UNSIGNED),
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
    (higher_level_demanded, "the level is layers, which is lower than logits"),
    (predicate(level="weights"), "the level is weights, which is lower than layers"),
    (predicate(level="everything"), "lacks a verdict, a known level"),
    (predicate(verdict="REJECTED", reason="so it is."), "the verdict is REJECTED: so it is."),
    (predicate(verdict="INCOMPLETE"), "the verdict is INCOMPLETE"),
    (predicate(verdict="certified"), "the verdict is certified"),
    (predicate(adapters=[]), "the certificate names no adapter"),
    (predicate(adapters=["mine"]), "lacks a verdict, a known level"),
    (claimed, "the adapter adapter is claimed"),
    (predicate(adapters=[{"name": "silent"}]), "the adapter silent is claimed"),
    (link, f"{SHARD} is a symbolic link"),
    (linked_folder, "more is a symbolic link"),
    (pipe, f"{SHARD} is neither a file nor a directory"),
    (certificate_inside, "lies inside the merged directory"),
    (certificate_inside_by_a_link, "lies inside the merged directory"),
    (signature_inside, "lies inside the merged directory"),
    (key_inside, "lies inside the merged directory"),
    (subject(SHARD), f"names the file '{SHARD}' twice"),
    (subject("../outside"), "'../outside' is no path inside a directory"),
    (subject("/etc/passwd"), "'/etc/passwd' is no path inside a directory"),
    (subject("a//b"), "'a//b' is no path inside a directory"),
    (subject("gone.safetensors"), "gone.safetensors is missing"),
    (subject("x", "0" * 63), "lacks a name or a sha256"),
    (statement(subject=[]), "the certificate names no file"),
    (statement(subject={"name": SHARD}), "the certificate names no file"),
    (statement(predicateType="https://slsa.dev/provenance/v1"), "predicateType is 'https://slsa.dev/provenance/v1'"),
    (statement(_type="https://in-toto.io/Statement/v0.1"), "_type is 'https://in-toto.io/Statement/v0.1'"),
    (statement(predicate=None), "lacks a verdict"),
    (another_release_expected, "this is another release"),
    (two_verdicts, "holds the key 'verdict' twice"),
    (written(b"[" * 1_000_000), "the certificate is not JSON"),
    (written(b"[]"), "holds a JSON list"),
    (written(b""), "the certificate is not JSON"),
    (written(b"\xff\xfe{}"), "the certificate is not JSON"),
    (huge, "are read"),
    (pipe_as_certificate, "is not a regular file"),
]


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

    def waiting(path: Path) -> str:
        together.wait(timeout=10)  # until all four files are being hashed
        return hashed(path)

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
    monkeypatch.setenv("_LORA_CERTIFY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    call([], monkeypatch)
    assert offered in capsys.readouterr().out.split()
