"""Mixtures of experts seen from outside: where tokens went, how the router scored them, and every expert asked once."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_flatten, tree_map


@dataclass
class Observed:
    """What one run of a unit showed, by module path.

    routes  (tokens, k) sorted expert numbers            scores  (tokens, experts) the router's own output
    calls   arguments of the experts module
    """

    routes: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)


def stacks(unit: nn.Module) -> dict[str, int]:
    """Path → number of experts, of every module that owns stacked matrices; the kernels of a convolution are no such stack."""
    found = {}
    for path, module in unit.named_modules():
        sizes = [len(p) for p in module.parameters(recurse=False) if p.dim() == 3]
        if sizes and not isinstance(module, _ConvNd):
            found[path] = sizes[0]
    return found


def routers(unit: nn.Module, experts: dict[str, int]) -> dict[str, int]:
    """Path → number of experts, of every module that scores them: a matrix with a row per expert, as near to the experts as there is one.

    Asked before PEFT's layers stand around anything; where one does, its answer is the score.
    """
    matrices = {path: {len(p) for p in module.parameters(recurse=False) if p.dim() == 2} for path, module in unit.named_modules()}
    found: dict[str, int] = {}
    for path, count in experts.items():
        scoring = [other for other, heights in matrices.items() if count in heights and other not in experts]
        while path:
            path = path.rpartition(".")[0]
            around = f"{path}." if path else ""
            if inside := [other for other in scoring if other.startswith(around)]:
                depth = min(other.count(".") for other in inside)  # a shared expert may be as wide as there are experts
                found |= {other: count for other in inside if other.count(".") == depth}
                break
    return found


@contextmanager
def observe(unit: nn.Module, experts: Iterable[str], routers: dict[str, int]) -> Iterator[Observed]:
    """Watches a unit while it runs; its parameters are still on the meta device or lazy, so that only shapes are asked for."""
    seen = Observed()
    hooks = [unit.get_submodule(path).register_forward_pre_hook(_route(seen, path), with_kwargs=True) for path in experts]
    hooks += [unit.get_submodule(path).register_forward_hook(_score(seen, path, count)) for path, count in routers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def force(experts: nn.Module, count: int, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor | None:
    """(experts, width): one token of `call` to each expert, so that none goes unseen. None where routing is no argument.

    It goes there k times, as models expect of every token, once with weight 1 and then with 0.
    """
    args, kwargs = call
    chosen = _numbers(args, kwargs)
    if chosen is None or not args:
        return None
    k, inputs = chosen.shape[1], args[0].reshape(-1, args[0].shape[-1])
    inputs = inputs[torch.arange(count) % len(inputs)]
    numbers = torch.arange(count)[:, None].expand(count, k)
    weights = torch.eye(1, k).expand(count, k)

    def forced(given: Any) -> Any:
        if not isinstance(given, Tensor) or given.dim() != 2 or given.shape[1] != k or given is args[0]:
            return given
        return (weights if given.is_floating_point() else numbers).to(given.dtype)

    answer = experts(inputs, *tree_map(forced, args[1:]), **tree_map(forced, kwargs))
    answer = next(given for given in tree_flatten(answer)[0] if isinstance(given, Tensor))
    return answer.reshape(count, -1).float()


def alike(one: Observed, other: Observed, tokens: int) -> Tensor:
    """Which tokens went to the same experts in two runs."""
    same = torch.ones(tokens, dtype=torch.bool)
    for path, routes in one.routes.items():
        if path in other.routes and len(routes) == tokens:
            same &= (routes == other.routes[path]).all(dim=-1)
    return same


def _route(seen: Observed, path: str) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        chosen = _numbers(args, kwargs)
        if chosen is not None:
            seen.routes[path], seen.calls[path] = chosen.sort(dim=-1).values, (args, kwargs)

    return hook


def _score(seen: Observed, path: str, count: int) -> Callable[..., None]:
    def hook(_: nn.Module, __: Any, output: Any) -> None:
        for given in tree_flatten(output)[0]:
            if isinstance(given, Tensor) and given.is_floating_point() and given.shape[-1] == count:
                seen.scores[path] = given.reshape(-1, given.shape[-1]).float()
                return

    return hook


def _numbers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The argument that says which experts each token goes to."""
    found = [g for g in tree_flatten((args, kwargs))[0] if isinstance(g, Tensor) and not g.is_floating_point() and g.dim() == 2]
    return found[0] if found else None
