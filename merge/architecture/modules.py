"""What a module does with its weight, by its class: how it stores it, and whether adding to its answer is adding to that weight.

PEFT puts a LoRA beside a module and adds B·A·x to what it answers. That is a change of the weight where the module is what it derives from:
a linear map, a lookup, a convolution. Many derive from these and do something else: positions that count from 2, weights that are
standardised first, inputs that are padded. Others are never called at all: what holds them reads their weight.
"""

import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from merge.nametable import Layout, Owner

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
PLAIN = (nn.Linear, nn.Embedding, *CONVOLUTIONS)
LINEAR_ALL_THE_SAME = {  # x Wᵀ by another spelling, or the first step of a router
    *("FalconLinear", "PhimoeTopKRouter", "Llama4Router"),
}
MORE = ("num_additional_embeddings", "out_additional_features")  # Idefics: what it answers besides; with none of it, it is plain
SCALED = re.compile(r"ScaledWordEmbedding$")  # rows times a number, which PEFT's LoRA is multiplied by as well
MULTIPLIED_LATER = ("GemmaTextScaledWordEmbedding", "Gemma2TextScaledWordEmbedding")  # in version 4, by the model: a LoRA as well
READ = r"self\.({})\.weight\b(?!\.(?:dtype|device|shape|size|data|requires_grad)\b)"
CALLED = r"self\.{}\("
TIME_STEP = re.compile(r"(^|\.)(mamba|mixer)\.dt_proj$")  # called where the model is quantised, and read everywhere else


def layout(module: nn.Module) -> Layout:
    """How a module stores its weight."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, CONVOLUTIONS):
        return "convolution" if module.groups == 1 else "other"
    return "conv1d" if isinstance(module, Conv1D) else "other"


def foreign(model: nn.Module) -> Mapping[str, str]:
    """Path → class of every module whose answer is not that of the class that it derives from."""
    return {path: type(module).__name__ for path, module in model.named_modules() if _is_foreign(module)}


def _is_foreign(module: nn.Module) -> bool:
    if isinstance(module, CONVOLUTIONS) and (module.padding_mode != "zeros" or _is_dilated(module)):
        return True  # PEFT's own convolution beside it pads with zeros and is not dilated
    kind = next((kind for kind in PLAIN if isinstance(module, kind)), None)
    if kind is None or type(module).forward is kind.forward or type(module).__name__ in LINEAR_ALL_THE_SAME:
        return False
    if any(getattr(module, name, None) == 0 for name in MORE):
        return False
    return not (kind is nn.Embedding and SCALED.search(type(module).__name__) and hasattr(module, "embed_scale"))


def _is_dilated(module: Any) -> bool:
    return any(step > 1 and width > 1 for step, width in zip(module.dilation, module.kernel_size, strict=True))


def scaled(model: nn.Module) -> frozenset[str]:
    """Parameters of embeddings whose rows are multiplied by a number other than one, in version 4 as well."""
    found = ((path, getattr(module, "scalar_embed_scale", getattr(module, "embed_scale", 1.0))) for path, module in model.named_modules()
             if isinstance(module, nn.Embedding) and type(module).__name__ not in MULTIPLIED_LATER)  # fmt: skip
    return frozenset(f"{path}.weight" for path, factor in found if not (isinstance(factor, int | float) and factor == 1))


def bypassed(model: nn.Module) -> frozenset[str]:
    """Paths of modules that the module around them never calls: it reads their weight, so that a LoRA beside them does nothing."""
    found, known = set(), dict[tuple[str, str], bool]()
    for path, module in model.named_modules():
        for name, child in module.named_children():
            kind = type(module).__qualname__, name
            if isinstance(child, PLAIN) and kind not in known:
                known[kind] = _is_only_read(name, _source(module)) or bool(TIME_STEP.search(f"{path}.{name}"))
            if known.get(kind):
                found.add(f"{path}.{name}" if path else name)
    return frozenset(found)


def _is_only_read(name: str, source: str) -> bool:
    return bool(re.search(READ.format(re.escape(name)), source)) and not re.search(CALLED.format(re.escape(name)), source)


def _source(module: nn.Module) -> str:
    """The methods of a module's class and of those that it derives from, as far as transformers wrote them; without comments and without
    assignments of weights."""
    classes = [own for own in type(module).__mro__ if own.__module__.startswith("transformers.models.")]
    try:
        sources = list(map(inspect.getsource, classes))
    except OSError:  # compiled files alone are installed: taken as called
        return ""
    return re.sub(r"#[^\n]*|[^\n]*\.weight = [^\n]*", "", "\n".join(sources))


def owners(model: nn.Module) -> Mapping[str, Owner]:
    """Path → module with parameters of two or three dimensions of its own."""
    found = {}
    for path, module in model.named_modules():
        own = {name: tuple(value.shape) for name, value in module.named_parameters(recurse=False)}
        if any(len(shape) in (2, 3) for shape in own.values()):
            found[path] = Owner(own, bool(getattr(module, "is_transposed", False)))
    return found
