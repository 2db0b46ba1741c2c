"""C7 of the tokenizer: it means what the base's means, or what the adapter's means where the adapter brings a complete one."""

from pathlib import Path
from typing import Any

from certify.errors import DamagedError
from certify.expect.meaning import chat_templates, differences, tokenizer_meaning, without_noise
from certify.inputs.folder import sha256
from certify.inputs.side_files import (
    MORE_TEMPLATES,
    OLD_TEMPLATE,
    TEMPLATE,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    tokenizer_files,
)
from certify.inputs.strict_json import read_object

WRITER = ("name_or_path", "tokenizer_class", "processor_class", "backend", "is_local", "tokenizer_file")  # says who wrote the file
UNREAD = {TOKENIZER_CONFIG: ("auto_map", "fast_tokenizer_files"), TOKENIZER_JSON: ("truncation", "padding")}  # the loaded one hides these

Problems = dict[str, list[str]]  # file → sentences


def tokenizer_problems(merged: Path, sources: tuple[Path, ...], rows: dict[Path, int | None]) -> Problems:
    """What is wrong with the merged tokenizer, against the source that it agrees with best.

    sources  directories that may have given it, the base first
    rows     directory → rows of its token embedding (base and merged)
    """
    told = [_against(merged, source, rows) for source in sources]
    return min(told, key=lambda problems: sum(map(len, problems.values())), default={})


def _against(merged: Path, source: Path, rows: dict[Path, int | None]) -> Problems:
    ours, theirs = tokenizer_files(merged), tokenizer_files(source)
    problems: Problems = {}
    same = {name for name in ours & theirs if sha256(merged / name) == sha256(source / name)}
    if same == ours | theirs:
        return _ids(merged, source, rows)
    loaded = _loaded(merged, source, problems)
    if not problems:
        _compare_files(merged, source, (ours | theirs) - same, loaded, problems)
        _compare_templates(merged, source, ours | theirs, problems)
    _compare_unread(merged, source, ours - same, problems)
    for name, lines in _ids(merged, source, rows).items():
        problems.setdefault(name, []).extend(lines)
    return problems


def _loaded(merged: Path, source: Path, problems: Problems) -> bool:
    """Compares what a loader makes of both; False where no loader reads the source, so that the files themselves must do."""
    for by_class in (True, False):
        expected = tokenizer_meaning(source, by_class=by_class)
        if expected is None:
            continue
        found = tokenizer_meaning(merged, by_class=by_class)
        file = TOKENIZER_JSON if (merged / TOKENIZER_JSON).is_file() or (source / TOKENIZER_JSON).is_file() else TOKENIZER_CONFIG
        if found is None:
            problems[file] = [_why(merged / file) or "transformers cannot load this tokenizer, though it loads the original one"]
            return True
        for name, here, there in zip((file, TOKENIZER_CONFIG), found, expected, strict=True):
            if lines := differences(here, there):
                problems.setdefault(name, []).extend(lines)
        return True
    return False


def _compare_unread(merged: Path, source: Path, names: frozenset[str], problems: Problems) -> None:
    """Keys that name code or another file, or cut every text: a loaded tokenizer does not show them.

    A section of tokenizer.json may be gone: the next call of transformers' tokenizer drops it.
    """
    for name in names & UNREAD.keys():
        try:
            found = read_object(merged / name)
        except DamagedError as error:
            problems.setdefault(name, [str(error)])
            continue
        expected, told = _object(source / name), problems.get(name, [])
        judged = [key for key in UNREAD[name] if name == TOKENIZER_CONFIG or found.get(key) is not None]
        lines = [line for key in judged for line in differences(found.get(key), expected.get(key), key) if line not in told]
        if lines:
            problems[name] = told + lines


def _object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none, or it cannot be read (which is found elsewhere)."""
    try:
        return read_object(path)
    except DamagedError:
        return {}


def _why(path: Path) -> str:
    if not path.is_file():
        return "missing"
    try:
        read_object(path)
    except DamagedError as error:
        return str(error)
    return ""


def _compare_files(merged: Path, source: Path, names: set[str] | frozenset[str], loaded: bool, problems: Problems) -> None:
    """File by file. Where a loader has read both alike, a file that it did not need may be absent, or written another way.

    tokenizer.json is judged by itself where transformers reads a versioned file in its place: other libraries go on reading it.
    """
    versioned = bool(_object(merged / TOKENIZER_CONFIG).get("fast_tokenizer_files"))
    read = ((TOKENIZER_CONFIG,) if versioned else (TOKENIZER_JSON, TOKENIZER_CONFIG)) if loaded else ()
    for name in sorted(names):
        if name in (TEMPLATE, OLD_TEMPLATE, *read) or name.startswith(MORE_TEMPLATES):
            continue
        if not (source / name).is_file():
            continue
        if not (merged / name).is_file():
            if not loaded:
                problems[name] = ["missing; the original tokenizer has it"]
        elif lines := _file(merged / name, source / name):
            problems[name] = lines


def _file(found: Path, expected: Path) -> list[str]:
    """Where two files of one name differ: as JSON, as lines, or as bytes."""
    try:
        if found.suffix == ".json":
            return differences(*(_tokens(without_noise(read_object(path))) for path in (found, expected)))
        if found.suffix == ".txt":
            here, there = _lines(found), _lines(expected)
            return [] if here == there else [f"{len(here):,} lines that are not the original's {len(there):,}"]
    except (DamagedError, UnicodeDecodeError) as error:
        return [str(error)]
    return [f"{found.stat().st_size:,} bytes that are not the original's {expected.stat().st_size:,}"]


def _lines(path: Path) -> list[str]:
    """The lines of a vocabulary or of merges, without the version at the top."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.rstrip() for line in lines if line.strip() and not line.startswith("#version")]


def _tokens(value: Any) -> Any:
    """Special tokens by their content, in whichever of the two spellings; the chat template is judged by itself."""
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("content"), str):
        return value["content"]
    return {key: _tokens(held) for key, held in value.items() if key not in WRITER and key != "chat_template"}


def _compare_templates(merged: Path, source: Path, names: frozenset[str], problems: Problems) -> None:
    home = next((name for name in (TEMPLATE, OLD_TEMPLATE) if name in names), TOKENIZER_CONFIG)
    try:
        found, expected = chat_templates(merged), chat_templates(source)
    except DamagedError as error:
        problems.setdefault(home, []).append(str(error))
        return
    for name in sorted({*found, *expected}):
        if found.get(name) != expected.get(name):
            state = "lost" if name not in found else "added" if name not in expected else "not the original one"
            problems.setdefault(home, []).append(f"the chat template {name!r} is {state}")


def _ids(merged: Path, source: Path, rows: dict[Path, int | None]) -> Problems:
    """Token ids that lie beyond the embedding; where the base's own do, they are not the merge's fault."""
    last, limit = _last_id(merged), rows.get(merged)
    if last is None or limit is None or last < limit:
        return {}
    before, base_limit = _last_id(source), rows.get(source)
    if before is not None and base_limit is not None and before >= base_limit:
        return {}
    return {TOKENIZER_JSON: [f"token {last:,} lies beyond the embedding's {limit:,} rows"]}


def _last_id(directory: Path) -> int | None:
    """The largest id in tokenizer.json; None where it states none."""
    content = _object(directory / TOKENIZER_JSON)
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary or ())))
    ids += [token.get("id") for token in added or () if isinstance(token, dict)] if isinstance(added, list) else []
    return max((number for number in ids if type(number) is int), default=None)
