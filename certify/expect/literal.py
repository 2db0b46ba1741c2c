"""The names of an architecture that transformers does not know: an adapter's module is the tensor of that very name, or none."""

from collections.abc import Mapping
from typing import Any

from certify.errors import NotInterpretedError
from certify.expect.place import Member, Piece, Place
from certify.inputs.stored import Stored


class LiteralNames:
    """Places without a model. Every matrix counts as a linear map (out, in): what PEFT adapts of an unknown architecture is nn.Linear."""

    literal = True
    embedding = ""

    def __init__(self, tensors: Mapping[str, Stored]) -> None:
        self.all = {
            key: Place(key, key, key, "out,in" if matrix else None, fused=False, tied=False, kind="linear" if matrix else "other")
            for key, tensor in tensors.items()
            for matrix in [len(tensor.shape) == 2 and key.endswith(".weight")]
        }

    def find(self, name: str) -> Place | None:
        return self.all.get(name)

    def of_parameter(self, parameter: str) -> Place | None:
        return self.all.get(parameter)

    def parameter(self, name: str) -> str:
        return name

    def source(self, _: str) -> str | None:
        return None

    def aliases(self, _: str) -> tuple[str, ...]:
        return ()

    def is_head(self, _: str) -> bool:
        return False

    def odd(self, _: str) -> str:
        return ""

    def silent(self, _: str) -> bool:
        return False

    def factor(self, _: str) -> float:
        return 1.0

    def biased(self, _: str) -> str:
        return ""

    def linear(self, _: str) -> tuple[str, ...]:
        raise NotInterpretedError("target_modules is 'all-linear', and without the architecture nobody knows which modules these are")

    def inside(self, _: str) -> Piece | None:
        return None

    def members(self, _: str) -> tuple[Member, ...]:
        return ()

    def pieces(self, parameter: str, _: Any) -> tuple[Piece, ...]:
        raise NotInterpretedError(f"{parameter}: without the architecture nobody knows how a parameter of several experts is stored")
