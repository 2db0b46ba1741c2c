"""C7 of what config.json says of quantised tensors: where it is wrong, a loader reads codes as weights, or weights as codes."""

from typing import Any, Final

from certify.encodings.coded import fitted
from certify.encodings.declaration import STATED, read, stated
from certify.errors import NotInterpretedError
from certify.inputs.checkpoint import Checkpoint
from certify.quantised import coded

PACKED: Final = ("weight_scale_inv", "weight_scale", "qweight", "weight_packed", "_scales", "_blocks", "weight_zero_point")  # ends of names
EXPORTED: Final = "hf_quant_config.json"  # the same once more, in a file of its own, as NVIDIA's tools write it


def quantised(checkpoint: Checkpoint) -> bool:
    """Whether anything in it is stored as codes, by dtype or by the names of what stands beside them."""
    return bool(coded(checkpoint)) or any(name.endswith(PACKED) for name in checkpoint.tensors)


def contradiction(config: Any, checkpoint: Checkpoint) -> str:
    """How a config.json and the tensors beside it cannot both be right; empty where they agree, or nobody can tell."""
    said, codes = list(stated(config)), coded(checkpoint)
    if said and not quantised(checkpoint):
        return f"{said[0][0]} is announced, no tensor is quantised"
    if not said:
        example = f" ({min(codes)})" if codes else ""
        return f"tensors are quantised{example}, quantization_config is absent" if quantised(checkpoint) else ""
    if any(value != said[0][1] for _, value in said):
        return f"{' and '.join(path for path, _ in said)} differ"
    try:
        declared = read(said[0][1])
    except NotInterpretedError:
        return ""
    problems = []
    for name in sorted(codes):
        weight, scale = checkpoint.tensors[name], checkpoint.tensors.get(name + declared.scale)
        told = f"there is no {name + declared.scale}" if scale is None else fitted(weight, scale, declared)
        problems += [f"{name}: {told}"] if isinstance(told, str) else []
    return f"{said[0][0]} does not fit {len(problems):,} of {len(codes):,} quantised tensors: {problems[0]}" if problems else ""


def without(config: Any) -> Any:
    """A configuration that says nothing of quantisation, at any level."""
    return {key: without(value) for key, value in config.items() if key not in STATED} if isinstance(config, dict) else config
