"""A parameter that reads itself from disk when an operation needs its numbers, and is forgotten afterwards."""

from collections.abc import Callable
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional

ROWS_ELEMENTS = 1 << 25  # a larger matrix, such as a head, is multiplied in blocks of rows of this many elements: 128 MiB


class Source(Protocol):
    """Where a lazy parameter's numbers are."""

    def load(self, rows: slice | None = None) -> Tensor:
        """The numbers, float32 or an integer dtype; of some rows (the first axis) if asked."""

    def expert(self, number: int) -> "Source":
        """One matrix of a stack."""

    def answer(self, inputs: Tensor) -> Tensor | None:
        """What a linear map answers where it is more than a weight: PEFT's unmerged expert; else None."""


class Lazy(torch.Tensor):
    """Has shape and dtype, and pretends to be on the CPU; whatever needs numbers gets them read.

    _is_param: torch's own mark of a tensor that `isinstance` takes for an nn.Parameter, which transformers' conversions insist on.
    """

    source: Source
    _is_param: bool = False

    @classmethod
    def make(cls, shape: torch.Size, dtype: torch.dtype, source: Source) -> Self:
        lazy: Self = torch.Tensor._make_subclass(cls, torch.empty(shape, dtype=dtype, device="meta"))
        lazy.source = source
        return lazy

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.device.__get__:
            return torch.device("cpu")
        if func in LOOKS:
            return super().__torch_function__(func, types, args, kwargs)  # type: ignore[no-untyped-call]
        if special := SPECIAL.get(func):
            answer = special(*args, **kwargs)
            if answer is not None:
                return answer
        return func(*_loaded(args), **{name: _loaded(given) for name, given in kwargs.items()})


def _loaded(given: Any) -> Any:
    """An argument with every lazy parameter in it read."""
    if isinstance(given, Lazy):
        return given.source.load()
    return type(given)(map(_loaded, given)) if type(given) in (list, tuple) else given


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """Blocks of rows for a large matrix, and PEFT's own answer for one of its experts."""
    if not isinstance(weight, Lazy) or isinstance(inputs, Lazy):
        return None
    answer = weight.source.answer(inputs)
    if answer is None:
        height = max(1, ROWS_ELEMENTS // weight.shape[1])
        if height >= len(weight):
            return None
        blocks = range(0, len(weight), height)
        answer = torch.cat([functional.linear(inputs, weight.source.load(slice(row, row + height))) for row in blocks], dim=-1)
    return answer if bias is None else answer + bias


def _embedding(ids: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor | None:
    """Only the rows of the tokens that occur."""
    if not isinstance(weight, Lazy):
        return None
    seen, places = torch.unique(ids, return_inverse=True)
    return functional.embedding(places, torch.cat([weight.source.load(slice(row, row + 1)) for row in seen.tolist()]))


def _item(stack: Tensor, place: Any) -> Tensor | None:
    """One expert of a stack stays lazy."""
    if not isinstance(stack, Lazy) or stack.dim() != 3 or not (isinstance(place, int) or (torch.is_tensor(place) and place.dim() == 0)):
        return None
    return Lazy.make(stack.shape[1:], stack.dtype, stack.source.expert(int(place)))


SPECIAL: dict[Any, Callable[..., Any]] = {functional.linear: _linear, functional.embedding: _embedding, torch.Tensor.__getitem__: _item}
LOOKS = {
    *(
        getattr(torch.Tensor, name).__get__
        for name in ("shape", "dtype", "ndim", "requires_grad", "is_meta", "layout", "grad_fn", "is_leaf")
    ),
    *(getattr(torch.Tensor, name) for name in ("size", "dim", "numel", "is_floating_point", "is_complex", "__len__", "requires_grad_")),
}  # what can be told without numbers
