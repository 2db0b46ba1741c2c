"""Hostile input: the gate's own readers turn whatever they meet into sentences, and never raise, loop or read elsewhere."""

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import certify
from certify.errors import DamagedError
from certify.inputs.adapter import open_adapter
from certify.inputs.checkpoint import INDEX, open_checkpoint
from certify.inputs.folder import folder_digest, regular_files, sha256
from certify.inputs.header import HEADER_MAX, read_header
from certify.inputs.stored import Stored
from certify.verdict import Verdict
from tests.test_certify.front_checkpoint import make


def test_no_name_of_a_file_is_the_line_of_another(tmp_path: Path) -> None:
    """A folder that lacks a file must not have the digest of one that has it."""
    whole, lacking = tmp_path / "whole", tmp_path / "lacking"
    for folder in (whole, lacking):
        folder.mkdir()
    (whole / "a").write_text("one")
    (whole / "b").write_text("two")
    (lacking / f"a\n{sha256(whole / 'b')}  b").write_text("one")
    assert folder_digest(whole) != folder_digest(lacking)
    (lacking / "a\\nb").write_text("two")
    one = folder_digest(lacking)
    (lacking / "a\\nb").rename(lacking / "a\nb")
    assert folder_digest(lacking) != one


def header_file(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with any header that one cares to write; strings are written as they are."""
    raw = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + body)
    return path


def tensor(start: int, stop: int, dtype: str = "F32", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("header", "body", "sentence"),
    [
        ("{", b"", "byte 8: the header is not JSON"),
        (b"\xff\xfe{}", b"", "not JSON"),
        ("[]", b"", "holds a JSON list"),
        ("[" * 100_000, b"", "not JSON"),
        ('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
         b"1234", "the key 'a' twice"),
        ({"a": tensor(0, 8), "b": tensor(4, 12)}, b"x" * 12, "overlaps 'a' by 4 bytes"),
        ({"a": tensor(0, 4), "b": tensor(8, 12)}, b"x" * 12, "4 bytes after 'a' belong to no tensor"),
        ({"a": tensor(4, 8)}, b"x" * 8, "4 bytes before the first tensor"),
        ({"a": tensor(0, 8)}, b"x" * 4, "4 are missing"),
        ({"a": tensor(0, 4)}, b"x" * 9, "5 bytes after the last tensor"),
        ({"a": tensor(0, 8, shape=[3])}, b"x" * 8, "needs 12 bytes"),
        ({"a": tensor(0, 4, dtype="F31")}, b"x" * 4, "unknown dtype 'F31'"),
        ({"a": tensor(0, 4, shape=[-1])}, b"x" * 4, "not natural numbers"),
        ({"a": tensor(0, 4, shape=[True])}, b"x" * 4, "not natural numbers"),
        ({"a": tensor(0, 4, shape=[1.0])}, b"x" * 4, "not natural numbers"),
        ({"a": tensor(0, 4, shape=[2**70])}, b"x" * 4, "not natural numbers"),
        ({"a": {"dtype": "F32"}}, b"", "lacks dtype, shape or data_offsets"),
        ({"a": 5}, b"", "lacks dtype, shape or data_offsets"),
        ({"__metadata__": {"a": 5}}, b"", "__metadata__ is not a map of strings"),
    ],
)  # fmt: skip
def test_a_hostile_header_is_described(tmp_path: Path, header: Any, body: bytes, sentence: str) -> None:
    problems = read_header(header_file(tmp_path / "x.safetensors", header, body)).problems
    assert any(sentence in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("length", "sentence"), [(HEADER_MAX + 1, "the format allows"), (2**63, "the format allows"), (99, "claims 99 bytes")]
)
def test_a_header_longer_than_the_file_or_the_limit(tmp_path: Path, length: int, sentence: str) -> None:
    assert sentence in read_header(header_file(tmp_path / "x", "{}", length=length)).problems[0]


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_a_file_too_short_for_a_header(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert "too few" in read_header(tmp_path / "x").problems[0]


def test_what_the_writer_makes_is_sound_and_read_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(5, 3).bfloat16(), "b": torch.randn(7), "e": torch.empty(0, 4), "s": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.problems == ()
    for name, expected in tensors.items():
        stored = Stored(tmp_path / "x.safetensors", header.entries[name])
        assert torch.equal(stored.load(), expected)
        assert b"".join(stored.raw()) == expected.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if expected.numel() else True
        assert sum(block.numel() for block in stored.elements(4)) == expected.numel()


@settings(derandomize=True, database=None, deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_spoiled_file_makes_a_reader_raise(tmp_path: Path, data: st.DataObject) -> None:
    save_file({"a": torch.ones(4), "b": torch.zeros(2, 2).half()}, tmp_path / "model.safetensors")
    raw = bytearray((tmp_path / "model.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "model.safetensors").write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    checkpoint = open_checkpoint(tmp_path)
    for stored in checkpoint.tensors.values():
        try:
            assert len(b"".join(stored.raw())) == stored.entry.stop - stored.entry.start
        except DamagedError:
            assert checkpoint.headers["model.safetensors"].problems


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ("nonsense", "not JSON"),
        ("{}", "no weight_map"),
        ('{"weight_map": []}', "empty or no object"),
        ('{"weight_map": {"a": "../x.safetensors"}}', "no file below this directory"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "no file below this directory"),
        ('{"weight_map": {"a": "b/../../x.safetensors"}}', "no file below this directory"),
        ('{"weight_map": {"a": 5}}', "no file below this directory"),
        ('{"weight_map": {"a": "x.safetensors", "a": "x.safetensors"}}', "occurs twice"),
        ('{"metadata": {"total_size": "7"}, "weight_map": {"a": "x.safetensors"}}', "not a whole number"),
    ],
)
def test_a_hostile_index_is_described(tmp_path: Path, index: str, sentence: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path.parent / "x.safetensors")
    (tmp_path / INDEX).write_text(index)
    checkpoint = open_checkpoint(tmp_path)
    assert any(sentence in problem for problem in checkpoint.index_problems), checkpoint.index_problems
    assert not checkpoint.tensors


def test_links_to_files_are_followed_and_hidden_names_left_out(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "store" / "blob")
    (tmp_path / "here" / ".cache").mkdir(parents=True)
    (tmp_path / "here" / ".cache" / "x.bin").write_bytes(b"x")
    (tmp_path / "here" / "model.safetensors").symlink_to(tmp_path / "store" / "blob")
    checkpoint = open_checkpoint(tmp_path / "here")
    assert list(checkpoint.tensors) == ["a"]
    assert checkpoint.stray == ()
    assert regular_files(tmp_path / "here") == ["model.safetensors"]
    assert folder_digest(tmp_path / "here") != folder_digest(tmp_path / "store")


def test_a_directory_without_weights_says_so(tmp_path: Path) -> None:
    assert "No such file" in open_checkpoint(tmp_path).index_problems[0]


class Evil:
    """A pickle that would write a file if anything but tensors were ever unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (self.marker.write_text, ("executed",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    torch.save({"a": Evil(tmp_path / "marker")}, tmp_path / "adapter_model.bin")
    adapter = open_adapter(tmp_path)
    assert not (tmp_path / "marker").exists()
    assert "weights-only" in adapter.problems[0][1]


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {3: torch.ones(1)}])
def test_a_pickle_of_something_else_is_described(tmp_path: Path, content: Any) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    torch.save(content, tmp_path / "adapter_model.bin")
    assert "map of names to tensors" in open_adapter(tmp_path).problems[0][1]


@pytest.mark.parametrize("kind", ["sparse", "compressed", "meta", "quantised"])
def test_a_tensor_that_is_not_plain_is_named_with_its_kind(tmp_path: Path, kind: str) -> None:
    """Such a file loads, and then has no storage to map: the gate must say so, and never trip over it later."""
    asked = make(tmp_path)
    (asked.adapter / "adapter_model.safetensors").rename(tmp_path / "set aside")
    name, A, B = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", torch.randn(4, 16), torch.randn(16, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls two of these layouts a prototype, or on their way out
        made = {
            "sparse": (A.to_sparse(), "a sparse tensor (torch.sparse_coo)"),
            "compressed": (A.to_sparse_csr(), "a sparse tensor (torch.sparse_csr)"),
            "meta": (A.to("meta"), "a meta tensor, which has no numbers"),
            "quantised": (torch.quantize_per_tensor(A, 0.1, 0, torch.qint8), "a quantised tensor (torch.qint8)"),
        }
        torch.save({name: made[kind][0], name.replace("lora_A", "lora_B"): B}, asked.adapter / "adapter_model.bin")
    certificate = certify.judge(asked.base, asked.adapter, asked.merged)
    assert certificate.verdict is Verdict.REJECTED, certificate.reason
    told = {finding.code: finding.sentence for finding in certificate.findings if finding.subject.endswith("adapter_model.bin")}
    assert f"{name} is {made[kind][1]}" in told["C1"], told


def test_a_pickle_before_the_zip_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    torch.save({"a": torch.ones(1)}, tmp_path / "adapter_model.bin", _use_new_zipfile_serialization=False)
    assert open_adapter(tmp_path).problems


def test_an_empty_adapter_directory_is_described(tmp_path: Path) -> None:
    assert [file for file, _ in open_adapter(tmp_path).problems] == ["adapter_config.json", "adapter_model.safetensors"]
