"""Plain and rank-stabilised LoRA on linear layers.

W ← W + scaling · B · A          Source: Hu et al. 2021, arXiv:2106.09685; rsLoRA: Kalajdzievski 2023, arXiv:2312.03732
"""

from collections.abc import Iterator, Mapping

from merge.adapters.config import Settings
from merge.adapters.contract import Addition, with_suffix
from merge.catalog import Tensor
from merge.errors import NOTHING_WRITTEN, AdapterError, listing

A, B = ".lora_A.weight", ".lora_B.weight"


def claim(settings: Settings, tensors: Mapping[str, Tensor]) -> Iterator[Addition]:
    """One addition per pair; raises AdapterError if a half is missing or the two halves do not fit each other."""
    rows, columns = dict(with_suffix(tensors, A)), dict(with_suffix(tensors, B))
    alone = [f"{path}: no {'lora_B' if path in rows else 'lora_A'}" for path in sorted(rows.keys() ^ columns.keys())]
    if alone:
        raise AdapterError(f"{len(alone)} LoRA pairs are incomplete\n{listing(alone)}\n{NOTHING_WRITTEN}")
    problems = []
    for path, a in rows.items():
        b = columns[path]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
            problems.append(f"{path}: lora_A {a.shape} and lora_B {b.shape} are not (rank, in) and (out, rank)")
            continue
        try:
            yield Addition(f"{path}.weight", a, b, settings.scaling(path, a.shape[0]))
        except AdapterError as error:
            problems.append(str(error))
    if problems:
        raise AdapterError(f"{len(problems)} LoRA pairs cannot be merged\n{listing(problems)}\n{NOTHING_WRITTEN}")
