"""A head that the base has not: the class that the adapter was trained on, by its task, must own it, and the configuration must name it."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers

from certify.errors import DamagedError, NotInterpretedError
from certify.expect.skeleton import quiet
from certify.inputs.adapter import AdapterTensor

AUTO = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
}


def task_class(model: Any, task: str, new: Mapping[str, AdapterTensor]) -> tuple[str, int]:
    """(name of the class, labels). Raises DamagedError where the class has no such tensors, NotInterpretedError where it is not known."""
    labels = max(tensor.shape[0] for tensor in new.values())
    first = min(new)
    if task not in AUTO:
        raise NotInterpretedError(f"{first} is not in the base, and the task {task or 'of the adapter'} names no head")
    try:
        made = _made(model, task, labels)
    except Exception as error:  # a class that transformers does not know for this architecture, or cannot build
        raise NotInterpretedError(f"{first} is not in the base, and its class is not known: {error}") from error
    held = made.state_dict()
    for name, tensor in new.items():
        if name not in held:
            raise DamagedError(f"{name} has no place in the base, nor in {type(made).__name__}")
        if tuple(held[name].shape) != tensor.shape:
            raise DamagedError(f"{name} is {tensor.shape}, that of {type(made).__name__} with {labels} labels is {tuple(held[name].shape)}")
    return type(made).__name__, labels


def lost_head(model: Any, task: str) -> str:
    """The first tensor that the class of this task has and the base's class has not; "" where there is none, or no such class is known."""
    try:
        held = _made(model, task, 1).state_dict() if task in AUTO else {}
    except Exception:  # as above
        return ""
    prefix = f"{model.base_model_prefix}."  # which the names of a model without any head lack
    own = model.state_dict().keys()
    return min((name for name in held.keys() - own if name.removeprefix(prefix) not in own), default="")


def _made(model: Any, task: str, labels: int) -> Any:
    with quiet(), torch.device("meta"):
        config = type(model.config).from_dict({**model.config.to_dict(), "num_labels": labels})
        return getattr(transformers, AUTO[task]).from_config(config)
