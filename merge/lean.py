"""Leave parts of torch out while transformers is imported: those that only a model that runs, compiles or is distributed needs.

transformers' modules name them while they define their classes, and nothing here ever runs a model; loading them would cost more time
and memory than a small merge. For processes of our own only: in another's, the functions that were defined meanwhile would stay bare.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NOT_NEEDED = ("torch._dynamo", "torch.distributed.tensor", "scipy", "sklearn", "accelerate")


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """Imports of these packages give hollow modules; afterwards the real ones can be imported as ever."""
    hollow = _Hollow([package for package in packages if package not in sys.modules])
    sys.meta_path.insert(0, hollow)
    try:
        yield
    finally:
        sys.meta_path.remove(hollow)
        for name in hollow.made:
            del sys.modules[name]
            parent, _, leaf = name.rpartition(".")
            if parent in sys.modules:
                vars(sys.modules[parent]).pop(leaf, None)


class _Hollow(MetaPathFinder, Loader):
    """Finds the packages that are left out, and whatever is imported from below them."""

    def __init__(self, packages: Sequence[str]) -> None:
        self._packages = packages
        self.made: list[str] = []

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        if any(name == package or name.startswith(f"{package}.") for package in self._packages):
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.made.append(spec.name)
        return _Module(spec.name)

    def exec_module(self, _module: ModuleType) -> None:
        pass


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        anything = type(name, (_Anything,), {})
        setattr(self, name, anything)
        return anything


class _Anything:
    """A class that nothing is an instance of; as a decorator it leaves a function as it is."""

    def __new__(cls, *given: Any, **_named: Any) -> Any:
        return next((thing for thing in given if callable(thing)), _as_it_is)


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function
