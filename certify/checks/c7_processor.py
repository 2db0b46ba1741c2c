"""C7 of a processor's settings in a file that the base does not have: transformers 5 writes one file where version 4 wrote several."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from certify.errors import NotInterpretedError
from certify.expect.meaning import differences, processors_as_saved, without_noise
from certify.inputs.side_files import PROCESSORS
from certify.inputs.strict_json import read_object

PICTURES, VIDEOS, SOUND = PROCESSORS[1:]
SECTIONS = {  # of the one file: the files that each was, of which the first counts that is there
    "image_processor": (PICTURES,),
    "video_processor": (VIDEOS, PICTURES),
    "feature_extractor": (PICTURES,),
    "audio_tokenizer": (SOUND,),
}
ACTING = ("chat_template", "auto_map", "processor_class")  # what a loader does more than it did, where the base states none
SHOWN = 4  # settings named
VARIANTS = ("Fast", "Pil")  # ends of a class's name: the same settings, carried out by another library

Keys = tuple[str, ...]


def added_processor(base: Path, merged: Path, name: str) -> list[str]:
    """One sentence for each setting that is not the base's. Raises DamagedError, NotInterpretedError.

    Where transformers cannot load the base's processor here (it needs a library for pictures), each setting that the base states must be
    the base's wherever it stands, each section must hold them all, since version 5 prefers it to the base's file, and nothing that acts
    may be new. What else is new may be a default written out, or not: that is not interpreted.
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
    told, new = _lacking(base, found), []
    for path, value in _settings(found):
        if path not in known and path[0] in ACTING:
            told += differences(value, None, ".".join(path))
        elif path in known and value not in known[path]:
            told += differences(value, known[path][0], ".".join(path))
        elif value is not None and path not in known:
            new.append(".".join(path))
    if new and not told:
        raise NotInterpretedError(f"the base does not state {', '.join(new[:SHOWN])}, and transformers cannot load its processor here")
    return told


def _lacking(base: Path, found: dict[str, Any]) -> list[str]:
    """Settings of the base's file that a section does not hold: version 5 would take its own default."""
    told = []
    for section, files in SECTIONS.items():
        home = next((base / file for file in files if (base / file).is_file()), None)
        held = found.get(section)
        if home is None or not isinstance(held, dict):
            continue
        stated = without_noise(read_object(home))
        lost = {key: value for key, value in stated.items() if key not in held and key not in ACTING and not key.endswith("_type")}
        told += [line for key, value in lost.items() for line in differences(None, value, f"{section}.{key}")]
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
