"""Everything that is not a weight: which files are carried, from where, and the few that are written anew.

Tokenizer files come from the adapter's directory if it holds a complete tokenizer, else from the base.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge.errors import NOTHING_WRITTEN, AdapterError
from merge.source import INDEX, files_below, read_json

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".safetensors.index.json", ".bin.index.json")
WEIGHT_FOLDERS = ("onnx", "original")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
TOKENIZER = (
    *VOCABULARIES,
    *("tokenizer_config.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
)
BESIDE = re.compile(  # what other libraries read of a tokenizer: an adapter seldom has it, and the base's stays where it has none
    r"tekken\.json|sentencepiece\.bpe\.model|[^/]+\.tiktoken|tokenizer\.(\d[\w.]*\.json|model\.v\d+\S*)"
)
MORE_TEMPLATES = "additional_chat_templates/"
CONFIG, CARD = "config.json", "README.md"
OURS = ("merge-manifest.json", "merge-run.jsonl")  # of an earlier merge, if the base is one
OTHER_SENSES = ("vision", "audio")  # sections of a configuration that have vocabularies and layers of their own
OF_QUANTISED = ("hf_quant_config.json",)  # speaks of scales that a decoded checkpoint has not
TIE = "tie_word_embeddings"
TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True, slots=True)
class SideFiles:
    """What stands beside the weights.

    origins  file → "base", "adapter" or "written"
    sources  file → the path it is carried from, for those that are carried
    stale    files of the base that are not carried: weights that nothing names, and what speaks of a quantisation that is gone
    """

    origins: Mapping[str, str]
    sources: Mapping[str, Path]
    stale: tuple[str, ...]


def survey(base: Path, adapters: Iterable[Path], shards: Iterable[str], *, new_config: bool, decoded: bool = False) -> SideFiles:
    """Which side files the output will have.

    new_config  config.json changes      decoded  the base is quantised, and the output is not

    Raises AdapterError if two adapters' tokenizers differ.
    """
    adapters = tuple(adapters)
    _refuse_two_tokenizers(adapters)
    present = {path.relative_to(base).as_posix(): path for path in files_below(base)}
    weights = {*shards, INDEX}
    stale = tuple(sorted(name for name in present if name not in weights and (_is_weight(name) or (decoded and name in OF_QUANTISED))))
    sources = {name: path for name, path in present.items() if name not in weights and name not in stale and name not in OURS}
    origins = dict.fromkeys(sources, "base")
    for adapter in adapters:
        own = tokenizer(adapter)
        if own:
            sources = {name: path for name, path in sources.items() if not _is_replaced(name)} | own
            origins = {name: kind for name, kind in origins.items() if not _is_replaced(name)} | dict.fromkeys(own, "adapter")
    origins[CARD] = "written"
    if new_config:
        origins[CONFIG] = "written"
    carried = {name: path for name, path in sources.items() if origins[name] != "written"}
    return SideFiles(dict(sorted(origins.items())), dict(sorted(carried.items())), stale)


def tokenizer(folder: Path) -> dict[str, Path]:
    """The files of a folder's tokenizer, if it holds a complete one."""
    present = {path.relative_to(folder).as_posix(): path for path in files_below(folder)}
    own = {name: path for name, path in present.items() if _is_replaced(name) or BESIDE.fullmatch(name)}
    return own if "tokenizer_config.json" in own and any(name in own for name in VOCABULARIES) else {}


def _is_replaced(name: str) -> bool:
    """Whether a tokenizer of the adapter's leaves nothing of the base's file of this name."""
    return name in TOKENIZER or name.startswith(MORE_TEMPLATES)


def _refuse_two_tokenizers(adapters: tuple[Path, ...]) -> None:
    """Raises AdapterError where two adapters bring tokenizers of their own that differ: one checkpoint has one."""
    brought = [(adapter, found) for adapter in adapters if (found := tokenizer(adapter))]
    for other, files in brought[1:]:
        first, own = brought[0]
        names = sorted(own.keys() | files.keys())
        different = [name for name in names if name not in own or name not in files or own[name].read_bytes() != files[name].read_bytes()]
        if different:
            raise AdapterError(
                f"{first} and {other} bring tokenizers that differ ({', '.join(different)}); one checkpoint has one. {NOTHING_WRITTEN}"
            )


def refuse_tokens_beyond(files: SideFiles, rows: int) -> None:
    """Raises AdapterError if the tokenizer has a token whose id lies beyond the embedding's rows."""
    path = files.sources.get("tokenizer.json")
    if path is None:
        return
    content = read_json(path)
    try:
        vocabulary = (content.get("model") or {}).get("vocab") or {}
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
        last = max([*ids, *(token["id"] for token in content.get("added_tokens") or ())], default=-1)
    except (AttributeError, KeyError, TypeError) as error:
        raise AdapterError(f"{path}: not a tokenizer that can be read ({error!r}). {NOTHING_WRITTEN}") from error
    if not isinstance(last, int):
        raise AdapterError(f"{path}: a token's id is {last!r}. {NOTHING_WRITTEN}")
    if last >= rows:
        raise AdapterError(f"{path}: token {last} lies beyond the embedding's {rows} rows. {NOTHING_WRITTEN}")


def config(path: Path, output_dtype: str, edits: Mapping[str, Any], gone: tuple[str, ...] = ()) -> bytes:
    """config.json with its dtype fields, at every level, set to the output's, and with the fields that the merge changed.

    gone   fields that are left out at every level where another dtype is chosen: a decoded checkpoint has no quantisation
    edits  field → value: set in every section that has it, and at the top where none has; a tie is always said at the top as well
    """
    data = read_json(path)
    if output_dtype != "same":
        data = _retyped(_without(data, gone), TORCH_DTYPES[output_dtype])
        if not data.keys() & {"dtype", "torch_dtype"}:
            data["dtype"] = TORCH_DTYPES[output_dtype]
    for name, value in edits.items():
        inner = [section for part, section in data.items() if not part.startswith(OTHER_SENSES)]
        sections = [section for section in (data, *inner) if isinstance(section, dict) and name in section]
        for section in sections if sections and name != TIE else [*sections, data]:
            section[name] = value
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _without(value: Any, gone: tuple[str, ...]) -> Any:
    return {k: _without(v, gone) for k, v in value.items() if k not in gone} if isinstance(value, dict) else value


def _retyped(value: Any, dtype: str) -> Any:
    if isinstance(value, dict):
        return {k: dtype if k in ("dtype", "torch_dtype") and v else _retyped(v, dtype) for k, v in value.items()}
    return value


def index(weight_map: Mapping[str, str], total_size: int, before: Path, output_dtype: str = "same") -> bytes:
    """The index of the output: the base's metadata, with total_size as it is now, and the dtype where another one is chosen."""
    metadata = read_json(before).get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    if output_dtype != "same":
        metadata = _retyped(metadata, TORCH_DTYPES[output_dtype])
    return (json.dumps({"metadata": {**metadata, "total_size": total_size}, "weight_map": weight_map}, indent=2) + "\n").encode()


def card(base: Path, adapters: Iterable[Path], counts: Mapping[str, int]) -> bytes:
    """The model card: hub metadata that names base and adapters, what was merged, and the base's own card below."""
    names = [_name(adapter) for adapter in adapters]
    own = (base / CARD).read_text(errors="replace") if (base / CARD).is_file() else ""
    front, body = _front_matter(own)
    base_name = _name(base)
    head = ["---", f"base_model: {json.dumps(base_name)}", "base_model_relation: merge", *front, "---", ""]
    text = [
        f"# {base_name} + {', '.join(names)}",
        "",
        f"The LoRA adapter {', '.join(f'`{name}`' for name in names)} merged into `{base_name}` by mergegate: "
        f"{counts['merged']} tensors merged, {counts['replaced']} replaced, {counts['copied']} carried byte for byte.",
        "`merge-manifest.json` says what was merged; certify it with `lora-certify run`.",
    ]
    below = ["", f"## The card of {base_name}", "", body.strip(), ""] if body.strip() else [""]
    return "\n".join(head + text + below).encode()


def _name(folder: Path) -> str:
    """What a person calls a checkpoint: org/name where it lies in a hub cache (models--org--name/snapshots/…), else the folder's name."""
    cached = [part for part in folder.resolve().parts if part.startswith("models--")]
    return "/".join(cached[-1].split("--")[1:]) if cached else folder.resolve().name


def _front_matter(text: str) -> tuple[list[str], str]:
    """(lines of the YAML block at the top without the keys that are written anew, what follows the block)."""
    found = re.match(r"---\n(.*?)\n---\n?", text, re.DOTALL)
    if not found:
        return [], text
    kept = re.sub(r"^base_model(_relation)?:.*\n(?:[ -].*\n)*", "", found[1] + "\n", flags=re.MULTILINE)
    return kept.splitlines(), text[found.end() :]


def _is_weight(name: str) -> bool:
    return name.endswith(WEIGHT_SUFFIXES) or name.split("/")[0] in WEIGHT_FOLDERS
