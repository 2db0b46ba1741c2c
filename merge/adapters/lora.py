"""LoRA and rsLoRA on linear, Conv1D and convolution layers and on attention's packed projection, DoRA's magnitudes included.

W ← W + scaling · B · A          Source: Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732
"""

from collections.abc import Iterator, Mapping

from merge.adapters import dora, experts
from merge.adapters.config import Settings
from merge.adapters.contract import Addition, unwrapped, with_suffix
from merge.catalog import Tensor
from merge.errors import NOTHING_WRITTEN, AdapterError, listing

A, B = ".lora_A.weight", ".lora_B.weight"
OUT_PROJECTION = ".base_layer.out_proj"  # of nn.MultiheadAttention, which PEFT wraps inside its own wrapper
TWICE_UP_TO = (0, 21, 2)  # PEFT's last version that adds that projection's delta twice, in training and in merging alike (PR 3774)


def claim(settings: Settings, tensors: Mapping[str, Tensor]) -> Iterator[Addition]:
    """One addition per pair; raises AdapterError if a half is missing or the two halves do not fit each other."""
    problems = []
    for path, (a, b) in pairs(tensors, A, B).items():
        if experts.targeted(settings, unwrapped(path)):
            continue
        if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[0] != b.shape[1] or set(b.shape[2:]) > {1}:
            problems.append(f"{path}: lora_A {a.shape} and lora_B {b.shape} are not (rank, in) and (out, rank)")
            continue
        try:
            scaling = settings.scaling(unwrapped(path), a.shape[0]) * _repeats(settings, path)
        except AdapterError as error:
            problems.append(str(error))
            continue
        module = unwrapped(path)
        names = (f"{module}.weight", f"{module}.in_proj_weight")
        inside = path.endswith(OUT_PROJECTION)
        yield Addition(names, a, b, scaling, magnitude=dora.magnitude(settings, tensors, path), inside=inside)
    if problems:
        raise AdapterError(f"{len(problems)} LoRA pairs cannot be merged\n{listing(problems)}\n{NOTHING_WRITTEN}")


def pairs(tensors: Mapping[str, Tensor], first: str, second: str) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Module path → the two halves of its factor; raises AdapterError naming every half that is alone."""
    rows, columns = dict(with_suffix(tensors, first)), dict(with_suffix(tensors, second))
    missing = {True: second, False: first}
    alone = [
        f"{path}: no {missing[path in rows].removeprefix('.').removesuffix('.weight')}" for path in sorted(rows.keys() ^ columns.keys())
    ]
    if alone:
        raise AdapterError(f"{len(alone)} LoRA pairs are incomplete\n{listing(alone)}\n{NOTHING_WRITTEN}")
    return {path: (a, columns[path]) for path, a in rows.items()}


def _repeats(settings: Settings, path: str) -> int:
    """How often the trained model added a delta."""
    if not path.endswith(OUT_PROJECTION):
        return 1
    if settings.version and settings.version > TWICE_UP_TO:
        raise AdapterError(f"{path}: whether PEFT {'.'.join(map(str, settings.version))} adds this delta once or twice is not known here")
    return 2
