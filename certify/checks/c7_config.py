"""C7 of config.json: it says what the base's says, and it tells the truth about the tensors beside it."""

import re
from typing import Any

from certify.checks.c2_completeness import main_dtype
from certify.checks.c7_quantisation import contradiction, quantised, without
from certify.checks.c7_unread import unread_problems
from certify.encodings.declaration import STATED
from certify.expect.declared import Declared
from certify.expect.meaning import config_meaning, differences, nulls_stated, without_noise, without_repetition
from certify.expect.replication import COUNTS
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.dtypes import TARGETS, TORCH_NAMES
from certify.inputs.side_files import CONFIG
from certify.inputs.strict_json import read_object

DTYPE_KEYS = ("dtype", "torch_dtype")
LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "shared.weight", "tok_embeddings.weight")
HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
TEXT = ("text_config", "llm_config", "language_config", "decoder")  # sections that describe the model of text
HEADED = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # classes that cannot be without an output head


def config_problems(base: Checkpoint, merged: Checkpoint, output_dtype: str, declared: Declared | None = None) -> list[str]:
    """What is wrong with the merged config.json. What base itself has wrong is not counted. Raises DamagedError if one is not JSON.

    declared: what the adapters make of the model; the merged configuration must say it, and nothing else
    """
    expected, found = read_object(base.directory / CONFIG), read_object(merged.directory / CONFIG)
    ours, theirs = config_meaning(merged.directory) or found, config_meaning(base.directory) or expected
    if unknown := ours is found or theirs is expected:
        ours, theirs = found, expected
    already, codes = against_tensors(theirs, base), "" if contradiction(expected, base) else contradiction(found, merged)
    if quantised(base) and (output_dtype != "same" or not quantised(merged)):
        found, expected, ours, theirs = (without(side) for side in (found, expected, ours, theirs))
    if declared is not None:
        theirs, expected = (as_declared(side, declared, ours) for side in (theirs, expected))
    found, ours = (without_repetition(side, theirs) for side in (found, ours))
    meant = [without_noise(side) for side in (ours, theirs)]
    told = differences(*map(nulls_stated, meant)) if unknown else differences(*meant)
    raw, stated = without_noise(found), without_noise(expected)
    told = list(dict.fromkeys((*told, *_conflicts(raw, stated, theirs), *unread_problems(raw, stated, ours, theirs))))
    told += [line for key, line in against_tensors(ours, merged).items() if key not in already]
    told += [codes] if codes else []
    return told + _dtype_problems(found, expected, main_dtype(base), output_dtype)


def as_declared(config: dict[str, Any], declared: Declared, found: dict[str, Any]) -> dict[str, Any]:
    """The base's configuration with the declared fields, at every level that has them; names of labels are free, their number is not."""
    fields = {key for key in declared.config if key in config} or set(declared.config)
    changed = {
        key: as_declared(value, declared, found.get(key) or {}) if isinstance(value, dict) and key.endswith(TEXT) else value
        for key, value in config.items()
    }
    inner = any(isinstance(value, dict) and key.endswith(TEXT) and declared.config.keys() & value.keys() for key, value in config.items())
    for key in fields:
        if key in config or not inner:
            changed[key] = declared.config[key]
    named = found.get("id2label")
    if declared.labels and isinstance(named, dict) and len(named) == declared.labels:
        changed |= {key: found.get(key) for key in ("id2label", "label2id", "num_labels") if key in found}
    return changed


def against_tensors(config: dict[str, Any], checkpoint: Checkpoint) -> dict[str, str]:
    """Kind of contradiction → sentence, wherever a configuration and the tensors beside it cannot both be right."""
    text = config.get("text_config") if isinstance(config.get("text_config"), dict) else config
    assert isinstance(text, dict)
    return _vocabulary(text, checkpoint) | _layers(text, checkpoint) | _tie(config, text, checkpoint)


def embedding_rows(checkpoint: Checkpoint) -> int | None:
    """Rows of the largest token embedding; None where no tensor has a name that is known for one."""
    return max((tensor.shape[0] for name, tensor in checkpoint.tensors.items() if name.endswith(EMBEDDINGS) and tensor.shape), default=None)


def _conflicts(found: Any, expected: Any, meaning: Any, path: str = "") -> list[str]:
    """Values that both files state, and state differently, though transformers ignores them: other loaders read the file itself.

    A value that transformers' own class makes of the base's is no conflict (Qwen2 saves sliding_window as null).
    """
    if isinstance(found, dict) and isinstance(expected, dict):
        inner = meaning if isinstance(meaning, dict) else {}
        both = [key for key in expected if key in found]
        return [line for k in both for line in _conflicts(found[k], expected[k], inner.get(k), f"{path}.{k}" if path else k)]
    stated = isinstance(found, str | int | float) and isinstance(expected, str | int | float)
    return differences(found, expected, path) if stated and differences(found, meaning) else []


def _vocabulary(text: dict[str, Any], checkpoint: Checkpoint) -> dict[str, str]:
    size, rows = text.get("vocab_size"), embedding_rows(checkpoint)
    if rows is None or type(size) is not int or size == rows:
        return {}
    return {"vocabulary": f"vocab_size is {size}, the embedding has {rows} rows"}


def _layers(text: dict[str, Any], checkpoint: Checkpoint) -> dict[str, str]:
    """Layers that are announced and absent; layers of multi-token prediction (MTP) follow the others, or say so by name."""
    count = next((text[key] for key in COUNTS if type(text.get(key)) is int), 0)
    there = {int(match[1]) for name in checkpoint.tensors for match in LAYER.finditer(name)}
    told = {f"layer {i}": f"announces {count} layers; layer {i} has no tensor" for i in range(min(count, 10_000)) if i not in there}
    mtp = text.get("num_nextn_predict_layers")
    if type(mtp) is int and mtp > 0 and not any(number >= count for number in there) and not any("mtp" in n for n in checkpoint.tensors):
        told["mtp"] = f"num_nextn_predict_layers is {mtp}; no tensor of such a layer is there"
    return told


def _tie(config: dict[str, Any], text: dict[str, Any], checkpoint: Checkpoint) -> dict[str, str]:
    """The flag against the head that is there: a loader that ties throws a head of its own away, one that does not needs one."""
    flag = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    stated = config.get("architectures")
    headed = isinstance(stated, list) and any(isinstance(name, str) and name.endswith(HEADED) for name in stated)
    names = {name.rpartition("model.")[2]: name for name in checkpoint.tensors}
    head = next((checkpoint.tensors[names[name]] for name in HEADS if name in names), None)
    if flag is False and headed and head is None:
        return {"tie": "tie_word_embeddings is false, yet there is no output head"}
    embedding = next((checkpoint.tensors[n] for n in sorted(checkpoint.tensors, key=len) if n.endswith(EMBEDDINGS)), None)
    if flag is not True or head is None or embedding is None or (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return {}
    if all(ours == theirs for ours, theirs in zip(head.raw(), embedding.raw(), strict=True)):
        return {}
    return {"tie": "tie_word_embeddings is true, yet the output head differs from the embedding; a loader throws the head away"}


def _dtype_problems(found: dict[str, Any], expected: dict[str, Any], main: str | None, output_dtype: str) -> list[str]:
    """Every stated dtype is that of the tensors as declared; where nothing was declared, the base's own word may stand as well."""
    stated, before = _stated(found), _stated(expected)
    right = TORCH_NAMES.get(main or "" if output_dtype == "same" else TARGETS[output_dtype])
    told = []
    for path, words in stated.items():
        theirs, prefix = before.get(path, {}), f"{path}." if path else ""
        allowed = {right, *theirs.values()} if output_dtype == "same" else {right}
        wrong = [(key, dtype) for key, dtype in words.items() if dtype not in allowed and right is not None]
        why = "as in the base, since no --output-dtype was given" if output_dtype == "same" else f"by --output-dtype={output_dtype}"
        told += [f"{prefix}{key} is {dtype}, {right} was expected: {why}" for key, dtype in wrong]
        if not wrong and len({*words.values()}) > 1 and words != theirs:
            told.append(f"{prefix}dtype is {words['dtype']}, yet torch_dtype beside it is {words['torch_dtype']}")
    return told + ([f"states no dtype, {right} was expected"] if "" in before and "" not in stated else [])


def _stated(config: dict[str, Any], path: str = "") -> dict[str, dict[str, str]]:
    """Path → spelling of the key → dtype, at every level outside the quantiser's own settings."""
    words = {key: str(config[key]).removeprefix("torch.") for key in DTYPE_KEYS if config.get(key)}
    told = {path: words} if words else {}
    for key, value in config.items():
        if isinstance(value, dict) and key not in STATED:
            told |= _stated(value, f"{path}.{key}" if path else key)
    return told
