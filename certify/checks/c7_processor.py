"""C7 of a processor's settings in a file that the base does not have: transformers 5 writes one file where version 4 wrote several."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from certify.expect.meaning import differences, processors_as_saved, without_noise
from certify.inputs.side_files import PROCESSORS
from certify.inputs.strict_json import read_object

SECTIONS = ("image_processor", "video_processor", "feature_extractor", "audio_tokenizer")  # of the one file; each was a file
ACTING = ("chat_template", "auto_map", "processor_class")  # what a loader does more than it did, where the base states none
VARIANTS = ("Fast", "Pil")  # ends of a class's name: the same settings, carried out by another library

Keys = tuple[str, ...]


def added_processor(base: Path, merged: Path, name: str) -> list[str]:
    """One sentence for each setting that is not the base's. Raises DamagedError.

    Where transformers cannot load the base's processor here (it needs a library for pictures), each setting that the base states must be
    the base's wherever it stands, and nothing that acts may be new.
    """
    stated = [read_object(base / other) for other in PROCESSORS if (base / other).is_file()]
    found = without_noise(read_object(merged / name))
    if not stated:
        return ["the settings of a processor; the base has none"]
    if (saved := processors_as_saved(base).get(name)) is not None:
        return differences(found, without_noise(saved))
    known: dict[Keys, list[Any]] = {}
    for path, value in (setting for settings in stated for setting in _settings(settings)):
        known.setdefault(path, []).append(value)
    told = []
    for path, value in _settings(found):
        if path not in known and path[0] in ACTING:
            told += differences(value, None, ".".join(path))
        elif path in known and value not in known[path]:
            told += differences(value, known[path][0], ".".join(path))
    return told


def _settings(value: Any, path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    if isinstance(value, dict):
        for key, held in value.items():
            yield from _settings(held, path if key in SECTIONS and isinstance(held, dict) else (*path, key))
        return
    if isinstance(value, str) and path[-1].endswith("_type"):
        for variant in VARIANTS:
            value = value.removesuffix(variant)
    yield path, value
