"""Hostile and damaged headers are refused with a sentence that names the file and the place."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merge import catalog
from merge.errors import CheckpointError

GOOD = {"a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, "b": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]}}
DATA = 16


def _parse(entries: object, data: int = DATA) -> catalog.Catalog:
    raw = json.dumps(entries).encode()
    return catalog.parse("x.safetensors", raw, 8 + len(raw) + data)


def _with(**changed: object) -> dict[str, object]:
    return {**GOOD, "a": {**GOOD["a"], **changed}}


def test_a_sound_header() -> None:
    found = _parse({**GOOD, "__metadata__": {"format": "pt"}})
    assert [(t.name, t.shape, t.size) for t in found.tensors] == [("a", (2, 3), 12), ("b", (), 4)]
    assert found.tensors[0].start == len(found.header)
    assert found.metadata == {"format": "pt"}


@pytest.mark.parametrize(
    ("entries", "data", "sentence"),
    [
        ([], DATA, "an object was expected"),
        (_with(dtype="Q7"), DATA, "unknown dtype 'Q7'"),
        (_with(shape=[2, -3]), DATA, "impossible shape"),
        (_with(shape=[2, True]), DATA, "impossible shape"),
        (_with(shape=[2, 4]), DATA, "needs 16 bytes"),
        (_with(data_offsets=[0]), DATA, "no dtype, shape and data_offsets"),
        (_with(data_offsets=[-12, 0]), DATA, "occupies bytes -12"),
        ({**GOOD, "b": {**GOOD["b"], "data_offsets": [10, 14]}}, DATA, "overlaps"),
        ({**GOOD, "b": {**GOOD["b"], "data_offsets": [14, 18]}}, 18, "leaves a hole"),
        (GOOD, 10, "truncated"),
        (GOOD, 20, "belong to no tensor"),
        ({**GOOD, "__metadata__": {"a": 1}}, DATA, "must map strings to strings"),
    ],
)
def test_what_is_refused(entries: object, data: int, sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        _parse(entries, data)


@pytest.mark.parametrize("raw", [b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":1}'])
def test_what_is_no_header_at_all(raw: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"not valid JSON|twice"):
        catalog.parse("x.safetensors", raw, 8 + len(raw))


@pytest.mark.parametrize(
    ("first", "size", "sentence"),
    [(b"abc", 3, "too short"), (struct.pack("<Q", 100_000_001), 1 << 30, "limit of 100,000,000"), (struct.pack("<Q", 50), 20, "truncated")],
)
def test_a_length_that_cannot_be(first: bytes, size: int, sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        catalog.header_length("x.safetensors", first, size)


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
wanted = st.dictionaries(
    st.text(min_size=1, max_size=9).filter("__metadata__".__ne__), st.tuples(st.sampled_from(sorted(catalog.ITEM_BITS)), shapes)
)


@given(wanted)
def test_what_is_composed_is_parsed_again(tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    made = catalog.compose("x.safetensors", [(name, dtype, shape) for name, (dtype, shape) in tensors.items()], {"format": "pt"})
    again = catalog.parse("x.safetensors", made.header[8:], made.size)
    assert {t.name: (t.dtype, t.shape, t.start, t.stop) for t in again.tensors} == {
        t.name: (t.dtype, t.shape, t.start, t.stop) for t in made.tensors
    }
    assert len(made.header) % 8 == 0
