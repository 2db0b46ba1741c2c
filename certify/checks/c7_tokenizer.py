"""C7 of the tokenizer: it means what the base's means, or what the adapter's means where the adapter brings a complete one."""

from pathlib import Path
from typing import Any

from certify.checks.c7_tokenizer_files import Problems, carried_files
from certify.checks.c7_tokenizer_keys import key_problems
from certify.errors import DamagedError
from certify.expect.meaning import chat_templates, differences, read_tokenizer, tokenizer_meaning
from certify.inputs.folder import sha256
from certify.inputs.side_files import (
    CONFIG,
    OLD_TEMPLATE,
    TEMPLATE,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    tokenizer_files,
)
from certify.inputs.strict_json import read_object

UNREAD = ("truncation", "padding")  # of tokenizer.json: the loaded tokenizer hides them


def tokenizer_problems(base: Path, merged: Path, sources: tuple[Path, ...], rows: dict[Path, int | None]) -> Problems:
    """What is wrong with the merged tokenizer, against the source that it agrees with best.

    sources  directories that may have given it, the base first
    rows     directory → rows of its token embedding (base and merged)
    """
    told = [_against(base, merged, source, rows) for source in sources]
    return min(told, key=lambda problems: sum(map(len, problems.values())), default={})


def _against(base: Path, merged: Path, source: Path, rows: dict[Path, int | None]) -> Problems:
    ours, theirs = tokenizer_files(merged), tokenizer_files(source)
    problems: Problems = {}
    same = {name for name in ours & theirs if sha256(merged / name) == sha256(source / name)}
    if same == ours | theirs:
        return _ids(merged, source, rows)
    loaded = _loaded(merged, source, base, problems)
    if not problems:
        problems |= carried_files(base, merged, source, (ours | theirs) - same, loaded)
        _compare_templates(merged, source, ours | theirs, problems)
    if TOKENIZER_JSON in ours - same:
        _compare_unread(merged, source, problems)
    for name, lines in _ids(merged, source, rows).items():
        problems.setdefault(name, []).extend(lines)
    return problems


def _loaded(merged: Path, source: Path, base: Path, problems: Problems) -> Any | None:
    """Compares what a loader makes of both; None where no loader reads the source, so that the files themselves must do.

    An adapter's tokenizer is one for the base's model.
    """
    for by_class in (True, False):
        model = (source if (source / CONFIG).is_file() else base) if by_class else None
        expected = read_tokenizer(source, model)
        if expected is None:
            continue
        found = read_tokenizer(merged, merged if by_class else None)
        file = TOKENIZER_JSON if (merged / TOKENIZER_JSON).is_file() or (source / TOKENIZER_JSON).is_file() else TOKENIZER_CONFIG
        if found is None:
            problems[file] = [_why(merged / file) or "transformers cannot load this tokenizer, though it loads the original one"]
            return expected
        means = zip((file, TOKENIZER_CONFIG), tokenizer_meaning(found), tokenizer_meaning(expected), strict=True)
        for name, lines in [(name, differences(here, there)) for name, here, there in means]:
            problems[name] = problems.get(name, []) + lines
        _compare_keys(merged, source, expected, problems)
        for name in [name for name, lines in problems.items() if not lines]:
            del problems[name]
        return expected
    return None


def _compare_keys(merged: Path, source: Path, loaded: Any, problems: Problems) -> None:
    """tokenizer_config.json as it stands; what the loaded tokenizers have already told is not told again."""
    try:
        found = read_object(merged / TOKENIZER_CONFIG) if (merged / TOKENIZER_CONFIG).is_file() else {}
        lines = key_problems(found, _object(source / TOKENIZER_CONFIG), loaded, _object(merged / CONFIG).get("model_type"))
    except DamagedError as error:
        lines = [str(error)]
    told = problems.get(TOKENIZER_CONFIG, [])
    problems[TOKENIZER_CONFIG] = told + [line for line in lines if line.split(" is ")[0] not in {t.split(" is ")[0] for t in told}]


def _compare_unread(merged: Path, source: Path, problems: Problems) -> None:
    """Sections of tokenizer.json that cut or fill every text. One may be gone: the next call of transformers' tokenizer drops it."""
    try:
        found = read_object(merged / TOKENIZER_JSON)
    except DamagedError as error:
        problems.setdefault(TOKENIZER_JSON, [str(error)])
        return
    expected, told = _object(source / TOKENIZER_JSON), problems.get(TOKENIZER_JSON, [])
    stated = [key for key in UNREAD if found.get(key) is not None]
    lines = [line for key in stated for line in differences(found[key], expected.get(key), key) if line not in told]
    if lines:
        problems[TOKENIZER_JSON] = told + lines


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


def _compare_templates(merged: Path, source: Path, names: frozenset[str], problems: Problems) -> None:
    home = next((name for name in (TEMPLATE, OLD_TEMPLATE) if name in names), TOKENIZER_CONFIG)
    try:
        found, expected = chat_templates(merged), chat_templates(source)
    except DamagedError as error:
        problems.setdefault(home, []).append(str(error))
        return
    for name in sorted({*found, *expected}):
        here, there = found.get(name, []), expected.get(name, [])
        if here[-1:] != there[-1:]:
            state = "lost" if name not in found else "added" if name not in expected else "not the original one"
            problems.setdefault(home, []).append(f"the chat template {name!r} is {state}")
        elif {*here} - {*there}:  # loaders differ in where they look first
            problems.setdefault(home, []).append(f"the chat template {name!r} stands in two places, and one is not the original one")


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
