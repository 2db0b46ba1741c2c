"""C7 of a tokenizer's files that transformers does not read: they are the base's, whoever brings the tokenizer; none is lost or made up."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import certify
import merge
from certify.inputs.side_files import is_tokenizer
from exam.faults.side import edit
from merge.proxies import make_adapter, make_checkpoint
from tests.test_certify.side_cases import failed, judged

EXTRA = ("tekken.json", "tokenizer.model.v3", "qwen.tiktoken", "sentencepiece.bpe.model")
OF_OTHERS = "the original tokenizer has no such file"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("carried") / "base"
    make_checkpoint("llama", base)
    return base


def with_own_tokenizer(base: Path, adapter: Path) -> Path:
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(adapter)
    return adapter


def test_an_adapters_tokenizer_beside_the_bases_own_vocabularies(base: Path, tmp_path: Path) -> None:
    """End to end: what the merge carries is what the gate expects, and nothing else is."""
    old, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    shutil.copytree(base, old)
    for name in (*EXTRA, "additional_chat_templates/tool_use.jinja"):
        (old / name).parent.mkdir(exist_ok=True)
        (old / name).write_text(f"as {name} has it")
    make_adapter(old, adapter)
    with_own_tokenizer(base, adapter)
    merge.merge(old, adapter, out)
    assert all((out / name).read_text() == f"as {name} has it" for name in EXTRA)
    certificate = certify.judge(old, adapter, out, level="weights")
    assert certificate.verdict == "CERTIFIED", certificate.reason
    (out / "tekken.json").write_text("of nobody")
    assert failed(judged(old, out, adapter))


def test_a_vocabulary_of_the_adapters_own_is_carried(base: Path, tmp_path: Path) -> None:
    old, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    shutil.copytree(base, old)
    (old / "tekken.json").write_text("{}")
    make_adapter(old, adapter)
    (with_own_tokenizer(base, adapter) / "tekken.json").write_text('{"of": "the adapter"}')
    merge.merge(old, adapter, out)
    assert failed(judged(old, out, adapter)) == {}


@pytest.mark.parametrize("name", ["tokenizer.py", "tokenizer.so", "tokenizer.model.v3.py", "tokenizer.4.0.0.json.pyc", "tokenizer.txt"])
def test_code_is_no_part_of_a_tokenizer(base: Path, tmp_path: Path, name: str) -> None:
    assert not is_tokenizer(name)
    out = tmp_path / "out"
    shutil.copytree(base, out)
    (out / name).write_text("import os")
    assert failed(judged(base, out)).keys() == ({name} if name != "tokenizer.txt" else set())


@pytest.mark.parametrize("name", ["tokenizer.model.v3", "tokenizer.model.v7m1", "tokenizer.4.0.0.json"])
def test_a_versioned_file_is_not_lost(base: Path, tmp_path: Path, name: str) -> None:
    old, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(base, old)
    (old / name).write_text("{}")
    assert failed(judged(old, base)) == {name: "missing; the base has it"}
    out = with_own_tokenizer(base, adapter)
    shutil.copytree(base, tmp_path / "out")
    with_own_tokenizer(base, tmp_path / "out")
    assert failed(judged(old, tmp_path / "out", out)) == {name: "missing; the base has it"}


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt"])
def test_a_vocabulary_beside_a_tokenizer_that_nobody_can_load(base: Path, tmp_path: Path, name: str) -> None:
    old, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(base, old)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (old / file).unlink()
    edit(old / "config.json", auto_map={"AutoTokenizer": ["tokens.Tokens", None]})
    (old / "tokenizer_config.json").write_text('{"tokenizer_class": "Tokens", "auto_map": {"AutoTokenizer": ["tokens.Tokens", null]}}')
    (old / "own.tiktoken").write_text("x")
    shutil.copytree(old, out)
    assert failed(judged(old, out)) == {}
    (out / name).write_bytes((base / "tokenizer.json").read_bytes())
    assert failed(judged(old, out))[name].startswith(OF_OTHERS)


LETTERS = {letter: number for number, letter in enumerate(("<s>", "</s>", "a", "b", "c", "ab", "abc"))}
VOCABULARIES: dict[str, tuple[Callable[[], dict[str, int]], bool]] = {
    "all of it": (lambda: LETTERS, True),
    "all of it, and what was added": (lambda: LETTERS | {"<pad>": 7}, True),
    "a part": (lambda: {"a": 2}, False),
    "another number": (lambda: LETTERS | {"a": 3, "b": 2}, False),
}


@pytest.mark.parametrize("case", VOCABULARIES)
def test_an_added_vocabulary_is_the_whole_one(base: Path, tmp_path: Path, case: str) -> None:
    old, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(base, old)
    pipeline = Tokenizer(models.BPE(vocab=LETTERS, merges=[("a", "b"), ("ab", "c")]))
    pipeline.pre_tokenizer, pipeline.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=pipeline, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    made.save_pretrained(old)
    shutil.copytree(old, out)
    stated, sound = VOCABULARIES[case]
    (out / "vocab.json").write_text(json.dumps(stated()))
    assert failed(judged(old, out)).keys() == (set() if sound else {"vocab.json"})
