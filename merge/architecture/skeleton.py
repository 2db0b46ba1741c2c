"""The model that config.json names, on the meta device: its module tree without its numbers."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.overrides import TorchFunctionMode
from transformers.initialization import no_init_weights
from transformers.models.auto import modeling_auto

from merge.errors import NOTHING_WRITTEN, CheckpointError

HEADS = {  # task_type → what transformers calls that head's class
    "SEQ_CLS": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "TOKEN_CLS": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "QUESTION_ANS": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
}


def read_config(config_file: Path) -> dict[str, Any]:
    """config.json of the base, with `architectures` a list of names."""
    try:
        found = json.loads(config_file.read_text())
        names = found.get("architectures") or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"architectures is {names!r}")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{config_file.name} of the base cannot be read: {error}\n{NOTHING_WRITTEN}") from error
    return {**found, "architectures": names}


def filled(config_file: Path) -> dict[str, Any]:
    """config.json as transformers reads it, defaults filled in; as it stands where transformers does not know it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: dict[str, Any] = transformers.AutoConfig.from_pretrained(
                config_file.parent, local_files_only=True, trust_remote_code=False
            ).to_dict()
    except Exception:  # a config can be wrong in as many ways as transformers has lines
        return read_config(config_file)
    return found


def model_class(name: str) -> Any | None:
    """transformers' own class of this name, or None: remote code is never run."""
    found = getattr(transformers, name, None) if name.isidentifier() else None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def with_head(config: Mapping[str, Any], task: str | None) -> str | None:
    """The class that an adapter for this task was trained on, if it is not the base's own."""
    name = HEADS.get(task or "", {}).get(config.get("model_type", ""))
    return name if name and name not in config["architectures"] and model_class(name) else None


def skeleton(config_file: Path, name: str, changes: Mapping[str, Any]) -> Any:
    """A model without storage. changes  fields of the configuration that the merge will change, already changed here"""
    built = model_class(name)
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), torch.device("meta"), _PositionsOnCpu(), no_init_weights():
            warnings.simplefilter("ignore")  # about generation and rope settings; nothing here runs the model
            config = transformers.AutoConfig.from_pretrained(config_file.parent, local_files_only=True, trust_remote_code=False, **changes)
            config._attn_implementation = "eager"  # nothing runs; kernels that the config asks for may not be installed
            return built(config)  # type: ignore[misc]  # the caller has asked model_class
    except Exception as error:  # a config can be wrong in as many ways as transformers has lines
        raise CheckpointError(f"transformers cannot build {name} from {config_file.name}: {error}\n{NOTHING_WRITTEN}") from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


class _PositionsOnCpu(TorchFunctionMode):
    """`torch.arange` makes real numbers even where everything else has no storage: on the meta device it would load sympy."""

    def __torch_function__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = {"device": "cpu"} if function is torch.arange else {}
        return function(*args, **(device | (kwargs or {})))
