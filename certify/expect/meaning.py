"""What side files mean: as transformers' own classes read them, so that a default written out, or a new spelling, is no difference.

Nothing is downloaded and no code of a checkpoint is executed. None: transformers does not know it, and the JSON itself is compared.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import transformers

from certify.errors import DamagedError
from certify.expect.skeleton import quiet
from certify.inputs.side_files import MORE_TEMPLATES, OLD_TEMPLATE, PROCESSORS, TEMPLATE, TOKENIZER_CONFIG
from certify.inputs.strict_json import read_object

NOISE = ("transformers_version", "dtype", "torch_dtype")  # keys that say who wrote the file; the dtype is judged by itself
NOTES = (
    *("_name_or_path", "_commit_hash", "_original_object_hash"),  # where a configuration came from
    *("_attn_implementation_autoset", "_flash_attn_2_enabled", "_valid_processor_keys"),  # what version 4 kept for itself, and wrote
)  # any other key that begins with "_" is an attribute like the rest: transformers sets it as it stands
PATTERN = "_sliding_window_pattern"  # of version 4: each layer of this number sees the whole text, those before it a window
SAFE = {"local_files_only": True, "trust_remote_code": False}
SETTINGS = (
    *("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces", "model_input_names"),
    *("add_bos_token", "add_eos_token", "add_prefix_space", "split_special_tokens", "extra_special_tokens"),
)  # what changes the ids that a text becomes, besides the vocabulary

Meaning = dict[str, Any]


def config_meaning(directory: Path) -> Meaning | None:
    """config.json with every default of its class filled in."""
    try:
        with quiet():
            return _plain(transformers.AutoConfig.from_pretrained(directory, **SAFE).to_dict())
    except Exception:  # unknown model types and wrong values raise whatever the class happens to raise
        return None


def generation_meaning(directory: Path) -> Meaning | None:
    """generation_config.json, less what equals transformers' defaults."""
    try:
        with quiet():
            return _plain(transformers.GenerationConfig.from_pretrained(directory, local_files_only=True).to_diff_dict())
    except Exception:  # as above
        return None


def read_tokenizer(directory: Path, model: Path | None) -> Any | None:
    """The tokenizer as the class reads it that is meant beside the config.json in `model`; None: as tokenizer.json alone says."""
    try:
        with quiet():
            if model is None:
                loaded = transformers.PreTrainedTokenizerFast.from_pretrained(directory, **SAFE)
            else:
                config = transformers.AutoConfig.from_pretrained(model, **SAFE)
                loaded = transformers.AutoTokenizer.from_pretrained(directory, config=config, **SAFE)
            tokenizer_meaning(loaded)
    except Exception:  # as above; the Rust library behind it raises bare exceptions
        return None
    return loaded


def tokenizer_meaning(loaded: Any) -> tuple[Meaning, Meaning]:
    """(vocabulary and pipeline, special tokens and settings)."""
    backend = getattr(loaded, "backend_tokenizer", None)
    pipeline = json.loads(backend.to_str()) if backend is not None else {"vocabulary": loaded.get_vocab()}
    settings = {"class": type(loaded).__name__} | {name: getattr(loaded, name, None) for name in SETTINGS}
    tokens = {name: str(token) for name, token in loaded.special_tokens_map.items() if not isinstance(token, list)}
    added = {str(number): _flags(token) for number, token in loaded.added_tokens_decoder.items()}
    pipeline = {key: value for key, value in pipeline.items() if key not in ("padding", "truncation")}  # of the last call, not of the text
    return pipeline, _plain(settings | {"tokens": tokens, "added": added})


def tokenizer_as_saved(loaded: Any) -> Meaning:
    """tokenizer_config.json as transformers writes it of this tokenizer, with what version 4 states besides: the tokens around a text."""
    try:
        with quiet(), tempfile.TemporaryDirectory() as room:
            loaded.save_pretrained(room)
            stated = read_object(Path(room) / TOKENIZER_CONFIG)
            ids = loaded("a")["input_ids"]
    except Exception:  # as above: remote code, settings of another version
        return {}
    return {"add_bos_token": ids[:1] == [loaded.bos_token_id], "add_eos_token": ids[-1:] == [loaded.eos_token_id]} | stated


def processors_as_saved(directory: Path) -> dict[str, Meaning]:
    """File → what transformers writes there of the processor of pictures or sound; empty where there is none that it can load."""
    try:
        with quiet(), tempfile.TemporaryDirectory() as room:
            transformers.AutoProcessor.from_pretrained(directory, **SAFE).save_pretrained(room)
            return {name: read_object(Path(room) / name) for name in PROCESSORS if (Path(room) / name).is_file()}
    except Exception:  # as above
        return {}


def _flags(token: Any) -> Meaning:
    """An added token's content and flags."""
    return {name: getattr(token, name) for name in ("content", "single_word", "lstrip", "rstrip", "normalized", "special")}


def chat_templates(directory: Path) -> dict[str, list[str]]:
    """Name → templates, from wherever they stand, the one that transformers prefers at the end. Raises DamagedError."""
    stated: Any = read_object(directory / TOKENIZER_CONFIG).get("chat_template") if (directory / TOKENIZER_CONFIG).is_file() else None
    found: list[tuple[str, str]] = []
    if isinstance(stated, str):
        found.append(("default", stated))
    elif isinstance(stated, list):
        found += [(str(entry.get("name")), str(entry.get("template"))) for entry in stated if isinstance(entry, dict)]
    if (directory / OLD_TEMPLATE).is_file():
        found.append(("default", str(read_object(directory / OLD_TEMPLATE).get("chat_template"))))
    if (directory / TEMPLATE).is_file():
        found.append(("default", _text(directory / TEMPLATE)))
    found += [(path.stem, _text(path)) for path in sorted((directory / MORE_TEMPLATES).glob("*.jinja"))]
    templates: dict[str, list[str]] = {}
    for name, text in found:
        templates.setdefault(name, []).append(text.removesuffix("\n"))  # jinja itself drops one newline at the end
    return templates


def without_noise(value: Any) -> Any:
    """A configuration less what says who wrote it, at every level."""
    if isinstance(value, dict):
        return {key: without_noise(held) for key, held in value.items() if key not in (*NOISE, *NOTES)}
    return [without_noise(held) for held in value] if isinstance(value, list) else value


def without_repetition(config: Meaning, meaning: Meaning) -> Meaning:
    """A configuration less the pattern of layers that version 4.5x wrote, wherever it says again which kinds of layers there are.

    meaning: the base's, with its layer_types
    """
    kept = {
        key: without_repetition(held, meaning[key]) if isinstance(held, dict) and isinstance(meaning.get(key), dict) else held
        for key, held in config.items()
    }
    every, kinds = kept.get(PATTERN), meaning.get("layer_types")
    if PATTERN not in meaning and type(every) is int and every > 0 and isinstance(kinds, list) and kinds == _repeated(every, len(kinds)):
        del kept[PATTERN]
    return kept


def _repeated(every: int, layers: int) -> list[str]:
    return ["sliding_attention" if (number + 1) % every else "full_attention" for number in range(layers)]


def nulls_stated(value: Any) -> Any:
    """JSON in which null is a value: where nobody knows a class's defaults, a key that is null and one that is absent differ."""
    if isinstance(value, dict):
        return {key: "null" if held is None else nulls_stated(held) for key, held in value.items()}
    return [nulls_stated(held) for held in value] if isinstance(value, list) else value


def differences(found: Any, expected: Any, path: str = "") -> list[str]:
    """One sentence for each place where two JSON values differ; null and absent are the same."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = [*expected, *(key for key in found if key not in expected)]
        return [line for key in keys for line in differences(found.get(key), expected.get(key), f"{path}.{key}" if path else str(key))]
    if found == expected and (isinstance(found, bool) == isinstance(expected, bool)):
        return []
    return [f"{path} is {_short(found)}, {_short(expected)} was expected"]


def _short(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _plain(value: Meaning) -> Meaning:
    plain: Meaning = json.loads(json.dumps(value, default=str))
    return plain


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{path.name}: {error}") from error
