"""What a config.json says of quantised tensors: how their scales are called, and how much of a weight shares one.

Sources: DeepSeek-V3, README_WEIGHTS.md ("FP8 Weight"), and inference/kernel.py; compressed-tensors, quantization/quant_args.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from certify.errors import DamagedError, NotInterpretedError
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.side_files import CONFIG
from certify.inputs.strict_json import read_object

STATED: Final = ("quantization_config", "compression_config")  # the second is compressed-tensors' older word
ALL: Final = 0  # a block as high, or as wide, as the weight
BESIDE: Final = ("input_scale", "activation_scale", "output_scale", "q_scale", "k_scale", "v_scale")  # of activations and caches


@dataclass(frozen=True, slots=True)
class Declaration:
    """scale: what a weight's name gets in that of its scale      blocks: (height, width), ALL for the whole of an axis; one, or several
    where the configuration names several groups of modules"""

    scale: str
    blocks: tuple[tuple[int, int], ...]


def stated(config: Any) -> Iterator[tuple[str, Any]]:
    """(path, value) of every quantisation that a configuration states, at whatever level."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key in STATED and value:
            yield key, value
        elif key not in STATED:
            yield from ((f"{key}.{path}", found) for path, found in stated(value))


def declaration(checkpoint: Checkpoint) -> Declaration:
    """Of a checkpoint. Raises NotInterpretedError where it states nothing, or nothing that this version knows."""
    try:
        found = [value for _, value in stated(read_object(checkpoint.directory / CONFIG))]
    except DamagedError as error:
        raise NotInterpretedError(str(error)) from error
    if not found or any(value != found[0] for value in found):
        what = f"{len(found)} quantisations that differ" if found else "no quantization_config"
        raise NotInterpretedError(f"its config.json states {what}")
    return read(found[0])


def read(settings: Any) -> Declaration:
    """One quantization_config. Raises NotInterpretedError for what this version does not know."""
    match settings:
        case {"quant_method": "fp8", **more} if more.get("fmt", "e4m3") == "e4m3":
            size = more.get("weight_block_size")
            return Declaration("_scale_inv", (_block(size) if size is not None else (ALL, ALL),))
        case {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {**groups}} if groups:
            return Declaration("_scale", tuple(dict.fromkeys(_shared(group) for group in groups.values())))
    told = {key: settings.get(key) for key in ("quant_method", "format", "fmt") if key in settings} if isinstance(settings, dict) else {}
    raise NotInterpretedError(f"the quantisation {told or settings!r} is not decoded by this version")


def _shared(group: Any) -> tuple[int, int]:
    """How much of a weight shares a scale in one group of compressed-tensors."""
    match group:
        case {"weights": {"num_bits": 8, "type": "float", **weights}} if weights.get("symmetric", True) is True:
            match weights.get("strategy"):
                case "tensor":
                    return ALL, ALL
                case "channel":
                    return 1, ALL
                case "block":
                    return _block(weights.get("block_structure"))
    raise NotInterpretedError("weights of this group of quantization_config are not decoded by this version")


def _block(size: Any) -> tuple[int, int]:
    match size:
        case [int(height), int(width)] if height > 0 and width > 0 and not isinstance(height, bool) and not isinstance(width, bool):
            return height, width
    raise NotInterpretedError(f"a block of {size!r} is not decoded by this version")
