"""What a hand can do to a certified directory and to its certificate; with each, what the refusal must say."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from certify.inputs.strict_json import JSON_MAX
from tests.test_certify.release import Release

SHARD = "model-00001-of-00002.safetensors"
UNSIGNED = "the signature does not hold"
Words = Sequence[str]
Tampering = Callable[[Release], Words | None]  # words: the command line, if it is another one


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
    (subject("a\ud800"), r"'a\ud800' is no path inside a directory"),
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
