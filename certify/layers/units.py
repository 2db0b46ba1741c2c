"""The parts of a model that are compared one by one: its layers, and what stands around them."""

from typing import Any

from torch import nn

from certify.errors import NotInterpretedError


def find_units(model: Any) -> tuple[dict[str, bool], tuple[str, ...]]:
    """Module path → whether it is a layer, in the model's order; and the modules that hold units, whose own parameters nobody calls.

    Layers are what transformers itself checkpoints one by one (`GradientCheckpointingLayer`), the outermost of each nest; where a model has
    none, the items of its lists. Every remaining module that owns parameters and holds no layer is a unit: embedding, norm, head.
    """
    modules = dict(model.named_modules())
    layers = _outermost([path for path, module in modules.items() if isinstance(module, _layer_class())])
    if not layers:
        lists = [(path, m) for path, m in modules.items() if isinstance(m, nn.ModuleList) and any(True for _ in m.parameters())]
        layers = _outermost([f"{path}.{number}" for path, items in lists for number in range(len(items))])
    holders = {path.rsplit(".", depth)[0] for path in layers for depth in range(1, path.count(".") + 1)} | {""}
    rest = [path for path, m in modules.items() if path not in holders and not _within(path, layers) and any(True for _ in m.parameters())]
    chosen = {*layers, *_outermost(rest)}
    return {path: path in layers for path in modules if path in chosen}, tuple(sorted(holders))


def _layer_class() -> type:
    try:
        from transformers.modeling_layers import GradientCheckpointingLayer
    except ImportError as error:
        raise NotInterpretedError(f"this transformers does not say what a layer is: {error}") from error
    layer_class: type = GradientCheckpointingLayer
    return layer_class


def _outermost(paths: list[str]) -> list[str]:
    """Those that lie in no other; a module comes before what it holds."""
    kept: dict[str, None] = {}
    for path in paths:
        if not _within(path, kept):
            kept[path] = None
    return list(kept)


def _within(path: str, others: Any) -> bool:
    """Whether a path, or one that holds it, is among the others."""
    parts = path.split(".")
    return any(".".join(parts[:depth]) in others for depth in range(1, len(parts) + 1))
