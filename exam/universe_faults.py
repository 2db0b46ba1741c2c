"""Faults of every kind of LoRA, planted in a right merge: what the tensors would be if a merge tool had made this mistake.

Each is worked out from base, merged and adapter alone, with the tensors' own names; it shares nothing with the gate or the engine.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
SCALING = 2.0  # α/r of the table's adapters
TOKENS = [3, 7, 41]


@dataclass(frozen=True)
class Scene:
    """A merged cell, opened. focus: the changed tensors that the feature is about."""

    base: Tensors
    merged: Tensors
    adapter: Tensors
    focus: list[str]

    def delta(self, key: str) -> Tensor:
        return self.merged[key] - self.base[key]

    def low_rank(self, key: str) -> Tensor | None:
        """s·B·A of a linear module by its own name, as the tensor is stored; None where the adapter calls it otherwise."""
        stem = f"base_model.model.{key.removesuffix('.weight')}"
        a, b = self.adapter.get(f"{stem}.lora_A.weight"), self.adapter.get(f"{stem}.lora_B.weight")
        if a is None or b is None:
            return None
        product = SCALING * b @ a
        return product if product.shape == self.base[key].shape else product.T


Plant = Callable[[Scene], Tensors]  # the tensors that are different
FOCUS: Mapping[str, str] = {
    "bias_all": r"bias$", "bias_lora_only": r"bias$", "lora_bias": r"bias$", "modules_to_save": r"(norm|lm_head|layer_norm|ln_f).*weight$",
    "embedding": r"(embed|wte|shared)", "embedding_dora": r"(embed|wte|shared)", "head": r"(lm_head|embed_out)", "tied_alike": r"embed",
    "saved_embedding": r"(embed|wte|shared)", "saved_head": r"lm_head", "saved_alike": r"embed", "token_rows": r"(embed|wte|shared)",
    "experts": r"experts", "experts_alone": r"experts", "disk_names": r"experts|mlp", "attention_module": r"out_proj\.weight",
    "dora": r"q_proj", "resized": r"q_proj|k_proj|v_proj",
}  # fmt: skip


def faults(feature: str) -> Iterator[tuple[str, Plant]]:
    """Those that make sense for a feature, by name."""
    yield "not merged", lambda s: {s.focus[0]: s.base[s.focus[0]]}
    yield "merged by half", lambda s: {s.focus[-1]: s.base[s.focus[-1]] + s.delta(s.focus[-1]) / 2}
    yield "merged twice", lambda s: {s.focus[0]: s.base[s.focus[0]] + 2 * s.delta(s.focus[0])}
    yield from SPECIAL.get(feature, {}).items()


def _dropped(s: Scene) -> Tensors:
    delta = s.low_rank(s.focus[0])
    return {} if delta is None else {s.focus[0]: s.base[s.focus[0]] + delta}


def _wrong_axis(s: Scene) -> Tensors:
    """DoRA's norm over the columns of a square matrix instead of its rows."""
    key = s.focus[0]
    delta, m = s.low_rank(key), s.adapter.get(f"base_model.model.{key.removesuffix('.weight')}.lora_magnitude_vector")
    if delta is None or m is None or delta.shape[0] != delta.shape[1]:
        return {}
    V = s.base[key] + delta
    return {key: V * (m / V.norm(dim=0))}


def _rolled(s: Scene) -> Tensors:
    return {s.focus[0]: s.base[s.focus[0]] + s.delta(s.focus[0]).roll(1, 0)}


def _rows_above(s: Scene) -> Tensors:
    wrong = s.base[s.focus[0]].clone()
    wrong[[row + 1 for row in TOKENS]] = s.merged[s.focus[0]][TOKENS]
    return {s.focus[0]: wrong}


def _rows_added(s: Scene) -> Tensors:
    return {s.focus[0]: s.merged[s.focus[0]] + s.base[s.focus[0]] * (s.delta(s.focus[0]) != 0)}


def _experts_reversed(s: Scene) -> Tensors:
    """The deltas of all experts of one kind in one layer in the other order, stacked or one by one."""
    key = s.focus[0]
    if s.base[key].dim() == 3:
        return {key: s.base[key] + s.delta(key).flip(0)}
    name = re.sub(r"experts\.\d+\.", "experts.*.", key)
    alike = [other for other in s.focus if re.sub(r"experts\.\d+\.", "experts.*.", other) == name]
    return {one: s.base[one] + s.delta(other) for one, other in zip(alike, alike[::-1], strict=True)}


def _kernel_turned(s: Scene) -> Tensors:
    return {s.focus[0]: s.base[s.focus[0]] + s.delta(s.focus[0]).flip(-1)}


def _wrong_source(s: Scene) -> Tensors:
    """A layer that is layer 1 again, taken from layer 0."""
    stem = next(key for key in s.merged if ".layers.2.input_layernorm" in key)
    return {stem: s.merged[stem.replace(".layers.2.", ".layers.0.")]}


def _weight_lost(s: Scene) -> Tensors:
    """The second adapter with weight 1 instead of −0.4: what it adds is worked out from its own factors."""
    key = s.focus[0]
    delta = s.low_rank(key)
    return {} if delta is None else {key: s.merged[key] + 1.4 * delta}


def _into_the_other_layer(s: Scene) -> Tensors:
    key = s.focus[0]
    other = re.sub(r"\.0\.", ".1.", key, count=1)
    return {other: s.base[other] + s.delta(key)} if other in s.base and other != key else {}


def _head_follows(s: Scene) -> Tensors:
    return {"lm_head.weight": s.merged[s.focus[0]]}


SPECIAL: Mapping[str, Mapping[str, Plant]] = {
    "dora": {"the magnitude dropped": _dropped, "the norm along the wrong axis": _wrong_axis},
    "embedding": {"the embedding's delta a row too low": _rolled, "the tied head follows the embedding": _head_follows},
    "embedding_dora": {"rows exchanged": _rolled},
    "token_rows": {"token rows off by one": _rows_above, "token rows added": _rows_added},
    "experts": {"experts in the other order": _experts_reversed},
    "experts_alone": {"experts in the other order": _experts_reversed},
    "disk_names": {"experts in the other order": _experts_reversed},
    "convolution": {"the kernel mirrored": _kernel_turned},
    "convolution_dora": {"the kernel mirrored": _kernel_turned},
    "replicated_layers": {"a layer from the wrong source": _wrong_source},
    "some_layers": {"another layer merged as well": _into_the_other_layer},
    "two_adapters": {"the second adapter's weight lost": _weight_lost},
}
CONFIGS: Mapping[str, tuple[str, ...]] = {  # fields of config.json left at the base's value
    "replicated_layers": ("num_hidden_layers",), "resized": ("vocab_size",), "embedding": ("tie_word_embeddings",),
    "head": ("tie_word_embeddings",), "head_of_task": ("architectures",),
}  # fmt: skip


def planted(feature: str, base: Path, merged: Path, adapters: tuple[Path, ...], out: Path) -> Iterator[str]:
    """The name of each fault, while `out` is the checkpoint that has it."""
    scene = _opened(feature, base, merged, adapters[-1])
    for name, plant in faults(feature):
        wrong = plant(scene)
        if all(key in scene.merged and torch.equal(value, scene.merged[key]) for key, value in wrong.items()):
            continue  # it changes nothing here: a head that is not tied follows nobody
        yield from _written(name, merged, out, scene.merged | wrong)
    before, now = (json.loads((side / "config.json").read_text()) for side in (base, merged))
    for field in CONFIGS.get(feature, ()):
        if before.get(field) != now.get(field):
            yield from _written(f"{field} as in the base", merged, out, scene.merged, now | {field: before.get(field)})


def _opened(feature: str, base: Path, merged: Path, adapter: Path) -> Scene:
    before, after = _tensors(base), _tensors(merged)
    pickle, safe = adapter / "adapter_model.bin", adapter / "adapter_model.safetensors"
    factors = load_file(safe) if safe.exists() else torch.load(pickle, weights_only=True)
    shared = [key for key in after if key in before and after[key].shape == before[key].shape]
    changed = sorted(key for key in shared if not torch.equal(after[key], before[key]))
    focus = [key for key in changed if re.search(FOCUS.get(feature, "."), key)]
    return Scene(before, after, factors, focus or changed)


def _tensors(folder: Path) -> Tensors:
    return {key: value for shard in sorted(folder.glob("model*.safetensors")) for key, value in load_file(shard).items()}


def _written(name: str, merged: Path, out: Path, tensors: Tensors, config: dict[str, Any] | None = None) -> Iterator[str]:
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(merged, out, ignore=shutil.ignore_patterns("model*.safetensors*", "merge-*"))
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, out / "model.safetensors", metadata={"format": "pt"})
    if config is not None:
        (out / "config.json").write_text(json.dumps(config))
    yield name
