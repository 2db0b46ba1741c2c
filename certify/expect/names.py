"""The grammar of an adapter file: whose tensor a name is, and which one of it. Source: peft 0.21.2, facts of `save_pretrained`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

PREFIX: Final = "base_model.model."  # PEFT's wrapper; absent in files made by inject_adapter_in_model
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
FACTORS: Final = re.compile(
    r"(.*)\.(lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B|lora_magnitude_vector(?:\.weight)?)"
)
OF_BASE: Final = re.compile(r"(.*?)(?:\.token_adapter)?\.base_layer\.(weight|bias)")
TOKENS: Final = re.compile(r"(.*?)\.(?:token_adapter\.)?trainable_tokens_delta")
STRANGE: Final = re.compile(r"\.(?:lora_|base_layer\.|token_adapter\.)")
WRAPPER: Final = re.compile(r"(.*)\.(modules_to_save|original_module)\.([^.]+)")  # bias="all" saves the biases of a saved module thrice
WRAPPED: Final = "base_layer"  # a step that PEFT inserts into paths

Family = Literal["pair", "base", "tokens", "saved", "again", "strange"]


@dataclass(frozen=True)
class Group:
    """Tensors that belong together. module: its path when it was trained, without PEFT's own steps; depth: how many of these there were.

    names: lora_A, lora_B, bias, embedding_A, embedding_B, magnitude; weight or bias of the base layer; the parameter's own last name
    """

    family: Family
    module: str
    depth: int
    names: dict[str, str] = field(default_factory=dict)


def groups(names: Iterable[str]) -> list[Group]:
    """Every name of a file in exactly one group, sorted."""
    found: dict[tuple[Family, str, int, str], Group] = {}
    for name in sorted(names):
        family, path, part = _parsed(name.removeprefix(PREFIX))
        steps = path.split(".")
        module = ".".join(step for step in steps if step != WRAPPED)
        alone = part if family not in ("pair", "tokens") else ""  # what is saved whole stands alone
        group = found.setdefault((family, module, steps.count(WRAPPED), alone), Group(family, module, steps.count(WRAPPED)))
        group.names[part] = name
    return list(found.values())


def _parsed(name: str) -> tuple[Family, str, str]:
    """(family, module path, which tensor of it)."""
    if match := FACTORS.fullmatch(name):
        part = match[2].removesuffix(".weight")
        return "pair", match[1], {"lora_B.bias": "bias", "lora_magnitude_vector": "magnitude"}.get(part, part.replace("lora_e", "e"))
    if match := TOKENS.fullmatch(name):
        return "tokens", match[1], "rows"
    if match := OF_BASE.fullmatch(name):
        return "base", match[1], match[2]
    if match := WRAPPER.fullmatch(name):
        return "again", match[1], f"{match[2]}.{match[3]}"
    if STRANGE.search(name):
        return "strange", *_split(name)
    return "saved", *_split(name)


def _split(name: str) -> tuple[str, str]:
    module, _, leaf = name.rpartition(".")
    return module, leaf
