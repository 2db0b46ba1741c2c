"""C7 of tokenizer_config.json as it stands: every loader reads it in its own way, so a key that nobody accounts for is a finding.

transformers 5 passes over keys that other versions and loaders obey (add_bos_token beside a tokenizer.json, tokenizer_file, legacy …),
and takes any other key for an attribute. So each key states what the source states, or what transformers writes of the source.
"""

from typing import Any

from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from certify.expect.meaning import SETTINGS, Meaning, differences, tokenizer_as_saved, without_noise

WRITER = ("name_or_path", "is_local", "local_files_only", "backend")  # says who wrote the file; a loader finds each out by itself
LOADED = (
    *("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens", "model_specific_special_tokens"),
    *("chat_template", "tokenizer_class"),
)  # written in more ways than one; what a loader makes of them is compared instead
AROUND = ("add_bos_token", "add_eos_token")  # a loaded tokenizer shows them only where there is no tokenizer.json
PROCESSOR = "processor_class"


def key_problems(found: Meaning, expected: Meaning, loaded: Any, model_type: object) -> list[str]:
    """One sentence for each key that says neither what the source says nor what transformers would write of it.

    found, expected  the merged and the source's tokenizer_config.json
    loaded           the source's tokenizer, which the merged one already equals as far as it shows
    """
    found, expected = contents(without_noise(found)), contents(without_noise(expected))
    keys = [key for key in dict.fromkeys((*expected, *found)) if key not in LOADED and differences(found.get(key), expected.get(key))]
    if not keys:
        return []
    saved, shown = contents(tokenizer_as_saved(loaded)), {*SETTINGS, *loaded.SPECIAL_TOKENS_ATTRIBUTES} - {*AROUND}
    processor = PROCESSOR_MAPPING_NAMES.get(str(model_type))
    told = []
    for key in keys:
        here, there = found.get(key), expected.get(key)
        again = here in ({}, []) if there is None else here is None and (key in AROUND or key in shown or saved.get(key) is None)
        unstated = there is None and saved.get(key) is None and key in shown
        named = key == PROCESSOR and here is not None and here == processor
        if differences(here, saved.get(key)) and not (again or unstated or named):
            told += differences(here, there, key)
    return told


def contents(value: Any) -> Any:
    """Special tokens by their content, in whichever of the two spellings; less what says who wrote the file."""
    if isinstance(value, list):
        return [contents(held) for held in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("content"), str):
        return value["content"]
    return {key: contents(held) for key, held in value.items() if key not in WRITER}
