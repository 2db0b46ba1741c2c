"""The architecture that a base's config.json names, built by transformers without storage and without remote code."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from certify.errors import DamagedError, NotInterpretedError
from certify.inputs.strict_json import read_object

CONFIG = "config.json"


@contextmanager
def quiet() -> Iterator[None]:
    """transformers and PEFT warn about running a model; nothing here runs one."""
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


def skeleton(base: Path, changes: Mapping[str, Any] | None = None) -> Any:
    """The base's model class on the meta device. changes: fields of its configuration that are to have other values.

    Raises NotInterpretedError if there is no config.json, or transformers does not know what it names.
    """
    try:
        stated = (changes or {}).get("architectures") or read_object(base / CONFIG).get("architectures")
    except DamagedError as error:
        raise NotInterpretedError(f"the base's architecture is unknown: {error}") from error
    name = stated[0] if isinstance(stated, list) and stated and isinstance(stated[0], str) else ""
    model_class = getattr(transformers, name, None) if name.isidentifier() else None
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        raise NotInterpretedError(f"transformers {transformers.__version__} does not know the architecture {stated!r} of the base")
    try:
        with quiet(), torch.device("meta"):
            config = transformers.AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
            for part in (config, config.get_text_config()):
                for field, value in (changes or {}).items():
                    setattr(part, field, value)
            return model_class(config)
    except Exception as error:  # a config can be wrong in as many ways as transformers has lines
        raise NotInterpretedError(f"transformers cannot build {name} from the base's config.json: {error}") from error
