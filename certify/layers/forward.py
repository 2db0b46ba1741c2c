"""The model's own forward, once; every unit is run in all its versions on the arguments that it gets, and the unmerged answer goes on."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from certify.errors import CertifyError, NotInterpretedError
from certify.expect.ledger import Ledger
from certify.expect.skeleton import quiet
from certify.inputs.adapter import Adapter
from certify.inputs.checkpoint import Checkpoint
from certify.layers.answers import Answer, first_tensor
from certify.layers.inputs import arguments
from certify.layers.layout import Layout
from certify.layers.model import runnable
from certify.layers.unit import Call, Unit, place
from certify.layers.units import find_units
from certify.layers.unmerged import Unmerged
from certify.layers.weights import Kind, Version, Weights

Examine = Callable[[Unit, Call, bool], Any]  # (unit, its arguments, whether it is a layer) → what it passes on


class StoppedError(CertifyError):
    """A unit could not be run, so that nothing behind it has arguments. unit: its path; reading: the last tensor asked for; cause: why."""

    def __init__(self, unit: str, reading: str, cause: Exception) -> None:
        known = isinstance(cause, CertifyError)
        super().__init__(f"{unit}, at {reading}: {cause if known else f'{type(cause).__name__}: {cause}'}")
        self.unit, self.cause = unit, cause


class Forward:
    """A model ready to be run. Raises NotInterpretedError where it cannot be built.

    units       path → Unit, in the model's order              layers        paths of those that are layers
    predictors  paths of the layers that predict further tokens  holders_keys  disk keys that no unit holds, but a module around units
    ran         paths of the units that were called
    """

    def __init__(
        self, base: Checkpoint, merged: Checkpoint, ledger: Ledger, adapters: Sequence[Adapter], factors: Sequence[float], criterion: str
    ) -> None:
        self.model, further = runnable(base, predictors=True, changes=ledger.declared.model)
        layout = Layout(self.model, base.tensors)
        self.weights = Weights(base, merged, ledger, layout, Unmerged(adapters, factors, ledger), criterion)
        paths, holders = find_units(self.model)
        self.layers = {path for path, layer in paths.items() if layer}
        modules = dict(self.model.named_modules())
        self.units = {path: Unit(path, modules[path], self.weights) for path in paths}
        self.predictors = frozenset(further)
        place(self.model, "", self.weights)  # weights that are used, or asked for their device, without a call of their module
        own = [f"{path}.{name}".lstrip(".") for path in holders for name in modules[path]._parameters]
        self.holders_keys = {key for name in own if (filling := layout.filling(name)) for key in filling.keys}
        self.ran: set[str] = set()

    def run(self, examine: Examine) -> None:
        """One forward. Raises StoppedError if a unit cannot be run, NotInterpretedError if the model around them cannot."""
        given = arguments(self.model)
        modules = dict(self.model.named_modules())
        for path, unit in self.units.items():
            modules[path].forward = partial(self._step, unit, examine)
        self.weights.version = Version("unmerged")
        try:
            with quiet(), torch.no_grad():
                self.model(**given)
        except StoppedError:
            raise
        except Exception as error:  # the model's own code, between units
            raise NotInterpretedError(f"the model does not run on tokens alone: {type(error).__name__}: {error}") from error

    def _step(self, unit: Unit, examine: Examine, *args: Any, **kwargs: Any) -> Any:
        """One unit; called again (a shared embedding), it only answers."""
        call: Call = (args, kwargs)
        try:
            if not any(isinstance(given, Tensor) for given in tree_flatten(call)[0]):
                raise NotInterpretedError("it is given nothing: the model needs more than tokens")
            if unit.unfit:
                raise NotInterpretedError(unit.unfit)
            if unit.path in self.ran:
                output = unit.answer(Version("unmerged"), call).passed_on
            else:
                self.ran.add(unit.path)
                output = examine(unit, call, unit.path in self.layers)
        except StoppedError:
            raise
        except Exception as error:
            raise StoppedError(unit.path, self.weights.reading or "no tensor yet", error) from error
        finally:
            unit.forget()
            self.weights.version = Version("unmerged")
        return self._unchanged(output, call) if unit.path in self.predictors else output

    @staticmethod
    def _unchanged(output: Any, call: Call) -> Any:
        """What the last layer said goes past a predictor of further tokens, which is no part of the way to the head."""
        given = first_tensor(call)
        return (given, *output[1:]) if isinstance(output, tuple) else given


def end_to_end(
    base: Checkpoint, merged: Checkpoint, ledger: Ledger, adapters: Sequence[Adapter], factors: Sequence[float], criterion: str,
    kinds: Sequence[Kind],
) -> tuple[list[Answer], Weights]:  # fmt: skip
    """The whole model without predictors, free running, in several versions, the unmerged one first.

    Raises NotInterpretedError if it does not run at all, StoppedError if it stops in a later version.
    """
    model, _ = runnable(base, predictors=False, changes=ledger.declared.model)
    weights = Weights(base, merged, ledger, Layout(model, base.tensors), Unmerged(adapters, factors, ledger), criterion)
    whole, given = Unit("", model, weights), arguments(model)
    whole.experts = {}  # nobody asks them one by one
    answers: list[Answer] = []
    for kind in ("unmerged", *kinds):
        try:
            with quiet():
                answers.append(whole.answer(Version(kind), ((), given)))
        except CertifyError:
            raise
        except Exception as error:
            if not answers:
                raise NotInterpretedError(f"the model does not run on tokens alone: {type(error).__name__}: {error}") from error
            raise StoppedError("the whole model", weights.reading, error) from error
    return answers, weights
