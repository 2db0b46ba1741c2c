"""Whether what PEFT puts beside a module changes its weight: the module is run on numbers of chance, and its holder's source is read.

PEFT adds s·B·A·x to the answer of a linear map, a lookup or a convolution. Classes that derive from these may do more: count positions from
two, pad, standardise the weight first. Then no weight is what was trained. And a module that is never called trains nothing.
"""

import ast
import copy
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST = 64  # features, of either side: a probe, not the real width
ROWS = 16  # of a lookup
CONVOLVE = {nn.Conv1d: functional.conv1d, nn.Conv2d: functional.conv2d, nn.Conv3d: functional.conv3d}
SCALE = "embed_scale"  # by which PEFT multiplies its own addend since 0.18
ONCE_PLAIN = ("GemmaTextScaledWordEmbedding", "Gemma2TextScaledWordEmbedding")  # version 4 had a plain lookup, and multiplied after it
TIME_STEP = "dt_proj"  # of Mamba's blocks
ABOUT_A_WEIGHT = ("dtype", "device", "shape", "size", "data", "requires_grad")


def is_plain(module: nn.Module) -> bool:
    """True where the module answers as PEFT takes for granted; other kinds of modules are not asked."""
    chance = torch.Generator().manual_seed(0)
    try:
        probe = copy.deepcopy(module).eval()
        with torch.no_grad():
            if isinstance(module, nn.Embedding):
                return _looks_up(probe, chance)
            if isinstance(module, nn.Linear):
                return _maps(probe, chance)
            return not isinstance(module, tuple(CONVOLVE)) or _convolves(probe, chance)
    except Exception:  # it takes other things than numbers of one kind: whatever it then raises, it is not plain
        return False


def factor(module: nn.Module) -> float:
    """By which a lookup multiplies its rows, and always did; 1 for most, NaN where it is not known without storage."""
    if type(module).__name__ in ONCE_PLAIN:
        return 1.0
    stated = getattr(module, f"scalar_{SCALE}", getattr(module, SCALE, 1.0))
    return float(stated) if isinstance(stated, int | float) else float("nan")


@cache
def is_called(kind: Any, name: str) -> bool:
    """False where a class of modules reads self.name.weight and never calls self.name: a LoRA there has no effect."""
    if name == TIME_STEP and kind.__name__.endswith("MambaMixer"):
        return False  # called where the model is quantised, and read everywhere else
    reads = calls = False
    for outer, inner in _uses(kind, name):
        calls |= isinstance(outer, ast.Call) and outer.func is inner
        reads |= isinstance(outer, ast.Attribute) and outer.attr == "weight" and isinstance(outer.ctx, ast.Load) and not _is_aside(outer)
    return calls or not reads


def _looks_up(probe: Any, chance: torch.Generator) -> bool:
    _filled(probe, (ROWS, probe.embedding_dim), chance)
    probe.padding_idx, probe.num_embeddings = None, ROWS
    numbers = torch.tensor([[1, 4, 7]])
    scale = getattr(probe, SCALE, 1.0)
    return _is_among(probe(numbers), probe.weight[numbers] * scale)


def _maps(probe: Any, chance: torch.Generator) -> bool:
    out, into = min(probe.out_features, MOST), min(probe.in_features, MOST)
    _filled(probe, (out, into), chance)
    inputs = torch.randn(3, into, dtype=torch.float64, generator=chance)
    return _is_among(probe(inputs), functional.linear(inputs, probe.weight, probe.bias))


def _convolves(probe: Any, chance: torch.Generator) -> bool:
    """Beside it PEFT's own one, which is not dilated and pads with zeros."""
    out, into = min(probe.out_channels, MOST), min(probe.in_channels, MOST)
    _filled(probe, (out, into, *probe.kernel_size), chance)
    probe.out_channels, probe.in_channels = out, into
    widths = (2 * width + 3 for width in probe.kernel_size)
    inputs = torch.randn(1, into, *widths, dtype=torch.float64, generator=chance)
    convolve = next(convolve for kind, convolve in CONVOLVE.items() if isinstance(probe, kind))
    return _is_among(probe(inputs), convolve(inputs, probe.weight, probe.bias, probe.stride, probe.padding))


def _filled(probe: nn.Module, shape: tuple[int, ...], chance: torch.Generator) -> None:
    """Every number of the module drawn by chance, its weight in a smaller shape."""
    for child in probe.modules():
        for name, value in child.named_parameters(recurse=False):
            size = {"weight": shape, "bias": shape[:1]}.get(name, tuple(value.shape)) if child is probe else tuple(value.shape)
            setattr(child, name, nn.Parameter(torch.randn(size, dtype=torch.float64, generator=chance)))
        for name, buffer in child.named_buffers(recurse=False):
            setattr(child, name, torch.rand(buffer.shape, dtype=torch.float64, generator=chance) + 1)


def _is_among(answer: Any, expected: Tensor) -> bool:
    """A router answers with several things; the first step of it may be a linear map all the same."""
    answers = answer if isinstance(answer, tuple) else (answer,)
    return any(isinstance(one, Tensor) and one.shape == expected.shape and torch.allclose(one, expected, rtol=1e-6) for one in answers)


def _uses(kind: Any, name: str) -> Iterator[tuple[ast.AST, ast.AST]]:
    """(what is done with it, self.name) wherever this class, or one above it that transformers wrote, mentions it."""
    for own in kind.__mro__:
        for inner in _attributes(own) if own.__module__.startswith("transformers.models.") else ():
            if inner.attr == name and getattr(inner.value, "id", "") == "self":
                yield inner.outer, inner  # type: ignore[attr-defined]


@cache
def _attributes(kind: Any) -> tuple[ast.Attribute, ...]:
    """Every attribute that a class's own source mentions, each knowing what is done with it; none where the source is not there."""
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):  # compiled, or made while the process runs
        return ()
    found = []
    for outer in ast.walk(ast.parse(source)):
        for inner in ast.iter_child_nodes(outer):
            inner.outer = outer  # type: ignore[attr-defined]
            found += [inner] if isinstance(inner, ast.Attribute) else []
    return tuple(found)


def _is_aside(weight: ast.AST) -> bool:
    """Where only a weight's dtype or the like is asked for, or another module's is tied to it."""
    outer = weight.outer  # type: ignore[attr-defined]
    return (isinstance(outer, ast.Attribute) and outer.attr in ABOUT_A_WEIGHT) or isinstance(outer, ast.Assign)
