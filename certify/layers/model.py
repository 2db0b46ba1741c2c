"""The model class that the base names, on the meta device, made to run from disk: float32, no cache, one expert at a time, MTP included."""

from collections.abc import Mapping
from typing import Any

import torch

from certify.errors import NotInterpretedError
from certify.expect.skeleton import quiet, skeleton
from certify.inputs.checkpoint import Checkpoint

UNSET = -7  # what an integer buffer holds until the model computes it; float ones hold NaN


def runnable(base: Checkpoint, *, predictors: bool, changes: Mapping[str, Any] | None = None) -> tuple[Any, tuple[str, ...]]:
    """The model, parameters on the meta device, buffers computed; and the paths of its layers that predict further tokens (MTP), if wanted.
    changes: what the adapters make of its configuration.

    Raises NotInterpretedError where transformers does not know the architecture, or cannot build it in this way.
    """
    plain = skeleton(base.directory, changes)
    config = plain.config
    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", None) or {})):
        if part is not None:
            part.use_cache = False
            if hasattr(part, "quantization_config"):
                del part.quantization_config
    further = _predictors(base, config) if predictors else ()
    if further:
        _lengthen(config, len(further))
    try:
        config._experts_implementation = "eager"  # the others take whole stacks of experts
        with quiet(), torch.device("meta"):
            model = type(plain)._from_config(config, dtype=torch.float32)
        _compute_buffers(model.eval())
    except Exception as error:  # a config can be wrong in as many ways as transformers has lines
        raise NotInterpretedError(f"transformers cannot build {type(plain).__name__} to run it from disk: {error}") from error
    if unset := [name for name, buffer in model.named_buffers() if _is_unset(buffer)]:
        raise NotInterpretedError(f"transformers does not compute the buffer {unset[0]} when it initialises {type(plain).__name__}")
    return model.requires_grad_(False), further


def _predictors(base: Checkpoint, config: Any) -> tuple[str, ...]:
    """Modules of the layers behind the last one that the base's files hold: `model.layers.61`."""
    depth, more = getattr(config, "num_hidden_layers", 0), getattr(config, "num_nextn_predict_layers", 0) or 0
    paths = [f"model.layers.{depth + number}" for number in range(more)]
    return tuple(path for path in paths if any(name.startswith(f"{path}.") for name in base.tensors))


def _lengthen(config: Any, more: int) -> None:
    """Makes the model as deep as its files; what is listed layer by layer repeats its last entry."""
    depth = config.num_hidden_layers
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == depth:
            setattr(config, name, [*value, *value[-1:] * more])
    config.num_hidden_layers = depth + more


def _compute_buffers(model: Any) -> None:
    """Buffers that no file holds (rotary frequencies, masks) are computed by transformers' own initialisation."""
    for module in model.modules():
        module._is_hf_initialized = False
        for name in module._non_persistent_buffers_set:
            if (buffer := module._buffers.get(name)) is not None:
                module._buffers[name] = torch.full(buffer.shape, float("nan") if buffer.is_floating_point() else UNSET, dtype=buffer.dtype)
    with quiet():
        model.initialize_weights()


def _is_unset(buffer: torch.Tensor) -> bool:
    if buffer.is_meta:
        return False
    return bool((buffer.isnan() if buffer.is_floating_point() else buffer == UNSET).any())
