"""C7: what stands beside the weights means what base and adapter say: configuration, generation, tokenizer, templates, remote code."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from certify.checks.c7_config import config_problems, embedding_rows
from certify.checks.c7_processor import added_processor
from certify.checks.c7_quantisation import EXPORTED, quantised
from certify.checks.c7_tokenizer import tokenizer_problems
from certify.checks.c7_tokenizer_files import Problems
from certify.errors import DamagedError, NotInterpretedError
from certify.expect.declared import Declared
from certify.expect.meaning import config_meaning, differences, generation_meaning, without_noise
from certify.finding import Finding, Outcome
from certify.inputs.adapter import CONFIG as ADAPTER_CONFIG
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.folder import folder_digest, sha256
from certify.inputs.side_files import (
    CONFIG,
    GENERATION,
    PROCESSORS,
    SETTINGS,
    VERSIONED,
    complete_tokenizers,
    is_code,
    is_tokenizer,
    side_files,
    tokenizer_files,
)
from certify.inputs.strict_json import read_object

CODE = "C7"
TITLE = "configuration, tokenizer and other side files mean what base and adapter say"
IDENTITY = "base: identity"  # the subject that exists where the request states the base's digest
MISSING = "missing; the base has it"
SHOWN = 4  # problems told per file
DERIVED = "_from_model_config"  # of generation settings: version 4 makes them anew from config.json where that has any


class SideFiles:
    """The side files of one question. subjects: relative names, sorted; of base ∪ merged, and of an adapter's complete tokenizer.

    Only meaning is judged, never bytes; what the base itself has wrong is not the merge's fault. Documents (README, LICENSE, images …)
    and merge-* files have no meaning for a loader; a file more than the base has is harmless unless it is code.

    declared: what the adapters change in config.json, asked for when that file is judged
    """

    def __init__(
        self, base: Checkpoint, merged: Checkpoint, adapters: Sequence[Path], output_dtype: str, base_digest: str | None,
        declared: Callable[[], Declared] = Declared,
    ) -> None:  # fmt: skip
        self.base, self.merged, self.output_dtype, self.base_digest = base, merged, output_dtype, base_digest
        self._declared = declared
        givers = (base.directory, *complete_tokenizers(adapters))
        self.sources = tuple(giver for giver in givers if tokenizer_files(giver))
        names = {*side_files(base), *side_files(merged)}.union(*(tokenizer_files(giver) for giver in self.sources))
        identity = (IDENTITY,) if base_digest is not None else ()
        self.subjects = (*identity, *sorted(names))

    def examine(self, name: str) -> Finding:
        """C7 of one subject."""
        try:
            problems = self._problems(name)
        except (DamagedError, RecursionError) as error:  # JSON may be nested as deeply as somebody likes
            problems = [str(error)]
        except NotInterpretedError as error:
            return Finding(CODE, name, Outcome.NOT_INTERPRETED, str(error))
        if not problems:
            return Finding(CODE, name, Outcome.PASSED)
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        return Finding(CODE, name, Outcome.FAILED, "; ".join(problems[:SHOWN]) + more, {"problems": len(problems)})

    def _problems(self, name: str) -> list[str]:
        if name == IDENTITY:
            digest = folder_digest(self.base.directory)
            return [] if digest == self.base_digest else [f"the base's digest is {digest}, --base-digest says {self.base_digest}"]
        if is_tokenizer(name):
            return self._tokenizer.get(name, [])
        found, expected = self.merged.directory / name, self.base.directory / name
        if name == EXPORTED and self.output_dtype != "same":
            return ["speaks of a quantisation that the declared output has not"] if found.is_file() and quantised(self.base) else []
        if not expected.is_file():
            return self._added(name, found)
        if not found.is_file():
            return [MISSING]
        if name == CONFIG and _is_object(expected):
            return config_problems(self.base, self.merged, self.output_dtype, self._declared())
        if sha256(found) == sha256(expected):
            return []
        if name == GENERATION:
            return _generation(found, expected)
        if found.suffix == ".json" and not is_code(name):
            return _json(found, expected)
        return ["differs from the base's, which is carried byte for byte"]

    @cached_property
    def _tokenizer(self) -> Problems:
        rows = {side.directory: embedding_rows(side) for side in (self.base, self.merged)}
        told = tokenizer_problems(self.base.directory, self.merged.directory, self.sources, rows)
        for name in [name for name in told if name not in self.subjects]:  # of a file that neither side has
            told.setdefault(next(filter(is_tokenizer, self.subjects)), []).extend(told.pop(name))
        lost = tokenizer_files(self.base.directory) - tokenizer_files(self.merged.directory)
        told |= {name: [MISSING] for name in lost if VERSIONED.fullmatch(name)}  # nothing that transformers reads stands for it
        return told

    def _added(self, name: str, found: Path) -> list[str]:
        if is_code(name):
            return ["code that the base does not have; a loader that trusts remote code would execute it"]
        if SETTINGS.fullmatch(name):
            return ["settings that the base does not have; a loader that finds this file goes by it"]
        if name in PROCESSORS:
            return added_processor(self.base.directory, self.merged.directory, name)
        if name == ADAPTER_CONFIG:
            return ["the configuration of an adapter: a loader takes this directory for an adapter and does not read its weights"]
        if name == GENERATION:  # save_pretrained makes one from config.json: it may repeat what stands there, and nothing else
            stated = without_noise(generation_meaning(found.parent) or read_object(found))
            stated.pop(DERIVED, None)
            path = self.base.directory / CONFIG
            config = config_meaning(self.base.directory) or (read_object(path) if _is_object(path) else {})
            return differences(stated, {key: config.get(key) for key in stated})
        return []


def _is_object(path: Path) -> bool:
    try:
        read_object(path)
    except DamagedError:
        return False
    return True


def _generation(found: Path, expected: Path) -> list[str]:
    read_object(found)  # transformers would take the last of two values for one key
    here, there = generation_meaning(found.parent), generation_meaning(expected.parent)
    if here is None or there is None:
        return _json(found, expected)
    expected_less = there if here.get(DERIVED) else {key: value for key, value in there.items() if key != DERIVED}
    return differences(without_noise(here), without_noise(expected_less))


def _json(found: Path, expected: Path) -> list[str]:
    """Another JSON object; where the base's is none, the bytes have already been found to differ."""
    here = read_object(found)
    try:
        there = read_object(expected)
    except DamagedError:
        return ["differs from the base's, which is no JSON object"]
    return differences(without_noise(here), without_noise(there))
