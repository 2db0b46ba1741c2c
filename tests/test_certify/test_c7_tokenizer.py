"""C7 of tokenizers, key by key and file by file: what transformers writes of the source is sound, and what nobody accounts for is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from exam.faults.side import edit
from merge.proxies import make_adapter, make_checkpoint
from tests.test_certify.side_cases import failed, judged

CONFIG, MAP = "tokenizer_config.json", "special_tokens_map.json"
LETTERS = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
Change = Callable[[Path], object]


def llama(room: Path) -> None:
    """LlamaTokenizer, which builds its pipeline itself, with a token of a name that it brings along."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", "<pad>", "▁", "<img>", *LETTERS])}
    made = transformers.LlamaTokenizer(vocab=vocabulary, merges=[], pad_token="<pad>", image_token="<img>", add_bos_token=True)
    made.save_pretrained(room)


def bert(room: Path) -> None:
    (room / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]) + "\n")
    (room / CONFIG).write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true, "model_max_length": 512}')


def unigram(room: Path) -> None:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in LETTERS)]
    transformers.T5Tokenizer(vocab=vocabulary, extra_ids=4).save_pretrained(room)


def of_characters(room: Path) -> None:
    """Written in Python, without a Rust pipeline."""
    transformers.ByT5Tokenizer(extra_ids=3).save_pretrained(room)


MADE: dict[str, tuple[Change, str]] = {
    "llama": (llama, "llama"),
    "bert": (bert, "gpt2"),
    "unigram": (unigram, "llama"),
    "byt5": (of_characters, "llama"),
}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base for each tokenizer."""
    room = tmp_path_factory.mktemp("tokenizers")
    for name, (make, family) in MADE.items():
        make_checkpoint(family, room / name)
        for file in ("tokenizer.json", CONFIG, "chat_template.jinja"):
            (room / name / file).unlink()
        make(room / name)
    make_adapter(room / "llama", room / "adapter")
    return room


def again(base: Path, out: Path) -> Path:
    """The same checkpoint with its tokenizer loaded and saved by transformers."""
    shutil.copytree(base, out)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return out


def changed(base: Path, out: Path, change: Change) -> dict[str, str]:
    shutil.copytree(base, out)
    change(out)
    return failed(judged(base, out))


@pytest.mark.parametrize("name", MADE)
def test_saved_once_more_it_is_sound(room: Path, tmp_path: Path, name: str) -> None:
    once = again(room / name, tmp_path / "once")
    assert failed(judged(room / name, once)) == {}
    assert failed(judged(once, again(once, tmp_path / "twice"))) == {}


def test_a_base_with_everything_that_versions_ever_wrote(room: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(room / "llama", base)
    added = {"3": {"content": "<pad>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}}
    edit(base / CONFIG, legacy=False, add_eos_token=False, add_bos_token=True, sp_model_kwargs={}, added_tokens_decoder=added)
    edit(base / CONFIG, name_or_path="/x", slow_tokenizer_class="L", special_tokens_map_file="/y", device_map="cpu", own=1)
    (base / MAP).write_text(json.dumps(SPECIAL | {"pad_token": added["3"]}))
    assert failed(judged(base, again(base, tmp_path / "out"))) == {}


def test_what_version_4_adds_is_sound(room: Path, tmp_path: Path) -> None:
    def as_version_4(out: Path) -> None:
        tokenizer = json.loads((out / "tokenizer.json").read_text())
        edit(
            out / CONFIG,
            add_bos_token=True,
            add_eos_token=False,
            sp_model_kwargs={},
            backend=None,
            is_local=None,
            tokenizer_class="LlamaTokenizerFast",
        )
        (out / MAP).write_text(json.dumps(SPECIAL | {"eos_token": {"content": "</s>", "lstrip": False}}))
        (out / "added_tokens.json").write_text('{"<pad>": 3}')
        (out / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
        (out / "merges.txt").write_text("#version: 0.2\n")

    assert changed(room / "llama", tmp_path / "out", as_version_4) == {}


def test_the_vocabulary_of_a_slow_tokenizer_may_stand_beside(room: Path, tmp_path: Path) -> None:
    base = again(room / "bert", tmp_path / "base")
    text = (base / "vocab.txt").read_text()
    (base / "vocab.txt").unlink()
    assert changed(base, tmp_path / "out", lambda out: (out / "vocab.txt").write_text(text)) == {}
    swapped = text.replace("a\nb\n", "b\na\n")
    told = changed(base, tmp_path / "swapped", lambda out: (out / "vocab.txt").write_text(swapped))
    assert list(told) == ["vocab.txt"]


FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "an_unknown_key": (CONFIG, {"brand_new": True}, "brand_new is true, absent was expected"),
    "another_file": (CONFIG, {"tokenizer_file": "/elsewhere/tokenizer.json"}, "tokenizer_file is "),
    "inputs": (CONFIG, {"init_inputs": ["x"]}, ""),
    "regex": (CONFIG, {"fix_mistral_regex": True}, "fix_mistral_regex is true"),
    "legacy": (CONFIG, {"legacy": True}, "legacy is true"),
    "no_bos": (CONFIG, {"add_bos_token": False}, "add_bos_token is false"),
    "eos_after_every_text": (CONFIG, {"add_eos_token": True}, "add_eos_token is true"),
    "lower_case": (CONFIG, {"do_lower_case": True}, "do_lower_case is true"),
    "class": (CONFIG, {"tokenizer_class": "GPT2Tokenizer"}, ""),
    "named_token": (CONFIG, {"image_token": "<pad>"}, "image_token"),
    "processor": (CONFIG, {"processor_class": "LlavaProcessor"}, "processor_class is"),
    "template_of_answers": (CONFIG, {"response_template": {"x": 1}}, "response_template is"),
    "underscore": (CONFIG, {"_private": 1}, "_private is 1"),
    "length": (CONFIG, {"model_max_length": 5}, "model_max_length is 5"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_key_that_nobody_accounts_for(room: Path, tmp_path: Path, name: str) -> None:
    file, changes, sentence = FAULTS[name]
    told = changed(room / "llama", tmp_path / "out", lambda out: edit(out / file, **changes))
    assert told
    assert {*told} <= {CONFIG, "tokenizer.json"}
    assert sentence in "; ".join(told.values())


ADDED: dict[str, tuple[str, str]] = {
    "eos_in_a_map": (MAP, json.dumps(SPECIAL | {"eos_token": "<pad>"})),
    "more_special": (MAP, json.dumps(SPECIAL | {"additional_special_tokens": ["z"]})),
    "a_number": ("added_tokens.json", '{"<pad>": 7}'),
    "a_vocabulary": ("vocab.json", '{"a": 1}'),
    "merges": ("merges.txt", "a b\n"),
    "a_model": ("tokenizer.model", "x"),
    "a_version": ("tokenizer.4.0.0.json", "{}"),
    "no_json": (MAP, "{"),
    "twice": (MAP, '{"eos_token": "</s>", "eos_token": "</s>"}'),
}


@pytest.mark.parametrize("name", ADDED)
def test_a_file_that_the_original_has_not(room: Path, tmp_path: Path, name: str) -> None:
    file, content = ADDED[name]
    assert changed(room / "llama", tmp_path / "out", lambda out: (out / file).write_text(content))


def test_an_adapters_tokenizer_is_read_beside_the_bases_model(room: Path, tmp_path: Path) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    shutil.copytree(room / "adapter", adapter)
    shutil.copytree(room / "llama", out)
    for file in ("tokenizer.json", CONFIG):
        shutil.copy(room / "llama" / file, adapter / file)
    edit(adapter / CONFIG, model_max_length=77)
    transformers.AutoTokenizer.from_pretrained(adapter, config=transformers.AutoConfig.from_pretrained(room / "llama")).save_pretrained(out)
    assert failed(judged(room / "llama", out, adapter)) == {}
    edit(out / CONFIG, tokenizer_class="GPT2Tokenizer")
    assert CONFIG in failed(judged(room / "llama", out, adapter))
