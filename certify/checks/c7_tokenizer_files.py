"""C7 of the tokenizer's files one by one: those that a loader did not need to read, and that other loaders read."""

from pathlib import Path
from typing import Any

from certify.checks.c7_tokenizer_keys import contents
from certify.errors import DamagedError
from certify.expect.meaning import differences, tokenizer_meaning, without_noise
from certify.inputs.folder import sha256
from certify.inputs.side_files import (
    ADDED,
    MERGES,
    MORE_TEMPLATES,
    OLD_TEMPLATE,
    SPECIAL,
    TEMPLATE,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    VOCABULARIES,
)
from certify.inputs.strict_json import read_object

Problems = dict[str, list[str]]  # file → sentences
LISTED = ("vocab.json", "vocab.txt")  # vocabularies that can be read without a library


def carried_files(base: Path, merged: Path, source: Path, names: set[str] | frozenset[str], loaded: Any | None) -> Problems:
    """File by file. Where a loader has read both alike, a file that it did not need may be absent, or written another way.

    loaded: the source's tokenizer, if a loader reads it

    tokenizer.json is judged by itself where transformers reads a versioned file in its place: other libraries go on reading it.
    """
    read: tuple[str, ...] = ()
    if loaded is not None:
        versioned = (merged / TOKENIZER_CONFIG).is_file() and bool(read_object(merged / TOKENIZER_CONFIG).get("fast_tokenizer_files"))
        read = (TOKENIZER_CONFIG,) if versioned else (TOKENIZER_JSON, TOKENIZER_CONFIG)
    problems: Problems = {}
    for name in sorted(names):
        if name in (TEMPLATE, OLD_TEMPLATE, *read) or name.startswith(MORE_TEMPLATES):
            continue
        if not (source / name).is_file():
            telling = loaded is not None or name in (*VOCABULARIES, MERGES)
            lines = _added(merged / name, base / name, loaded) if telling else []
        elif not (merged / name).is_file():
            lines = [] if loaded is not None else ["missing; the original tokenizer has it"]
        else:
            lines = _file(merged / name, source / name)
        problems |= {name: lines} if lines else {}
    return problems


def _added(found: Path, carried: Path, loaded: Any | None) -> list[str]:
    """A file that the original has not. What the loaded tokenizer can account for is held against it; what other libraries read
    (tekken.json, a tokenizer.model) may be carried from the base beside an adapter's tokenizer, and nothing else may stand there.
    """
    if loaded is not None and found.name in (SPECIAL, ADDED, *LISTED, MERGES):
        try:
            return _written_again(found, loaded)
        except (DamagedError, UnicodeDecodeError) as error:
            return [str(error)]
    if carried.is_file() and sha256(carried) == sha256(found):
        return []
    return ["the original tokenizer has no such file; a loader that prefers it would read another vocabulary"]


def _written_again(found: Path, loaded: Any) -> list[str]:
    """Version 4 writes the same once more for its slow tokenizers. Raises DamagedError, UnicodeDecodeError."""
    model = tokenizer_meaning(loaded)[0].get("model", {})
    if found.name == MERGES:
        pairs = [" ".join(pair) if isinstance(pair, list) else pair for pair in model.get("merges", ())]
        return [] if _lines(found) == pairs else [f"{len(_lines(found)):,} merges that are not the original's {len(pairs):,}"]
    if found.name in LISTED:
        stated = read_object(found) if found.suffix == ".json" else _rows(found)
        whole = model.get("vocab")  # all of it must be there; tokens that were added to it may stand elsewhere
        return differences(stated, _numbered(loaded, stated) | (whole if isinstance(whole, dict) else {}))
    stated = contents(read_object(found))
    return differences(stated, _tokens(loaded, stated) if found.name == SPECIAL else _numbered(loaded, stated))


def _tokens(loaded: Any, stated: dict[str, Any]) -> dict[str, Any]:
    """What the original says of the special tokens that are stated; a list of more of them in its own order."""
    extra, named = sorted(map(str, loaded.extra_special_tokens or ())), loaded.special_tokens_map
    same = {key: value for key, value in stated.items() if isinstance(value, list) and sorted(map(str, value)) == extra}
    return {key: extra if isinstance(value, list) else named.get(key) for key, value in stated.items()} | same


def _numbered(loaded: Any, stated: dict[str, Any]) -> dict[str, Any]:
    """The original's numbers of the tokens that are stated."""
    vocabulary = loaded.get_vocab()
    return {token: vocabulary.get(token) for token in stated}


def _file(found: Path, expected: Path) -> list[str]:
    """Where two files of one name differ: as JSON, as lines, or as bytes."""
    try:
        if found.suffix == ".json":
            return differences(*(contents(without_noise(_less_templates(read_object(path)))) for path in (found, expected)))
        if found.suffix == ".txt":
            here, there = _lines(found), _lines(expected)
            return [] if here == there else [f"{len(here):,} lines that are not the original's {len(there):,}"]
    except (DamagedError, UnicodeDecodeError) as error:
        return [str(error)]
    return [f"{found.stat().st_size:,} bytes that are not the original's {expected.stat().st_size:,}"]


def _less_templates(stated: dict[str, Any]) -> dict[str, Any]:
    """The chat template is judged by itself."""
    return {key: value for key, value in stated.items() if key != "chat_template"}


def _lines(path: Path) -> list[str]:
    """The lines of a vocabulary or of merges, without the version at the top."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line.rstrip() for line in lines if line.strip() and not line.startswith("#version")]


def _rows(path: Path) -> dict[str, int]:
    """Each line's token and number, as BERT's vocabularies are read."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return {token: number for number, token in enumerate(lines)}
