"""The cells themselves: by an option of PEFT's own, or produced in another way; run by the table's command and by the tests."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import merge
from merge.errors import MergeError
from tests import reference
from tests.matrix import trial
from tests.matrix.families import FAMILIES, Family
from tests.matrix.features import FEATURES

RESIZED = 104  # rows, from 96


def run(family: str, feature: str, room: Path) -> str:
    """Raises AssertionError unless the cell is merged right; a line of figures."""
    base = trial.make_base(family, room)
    work = room / f"{family}-{feature}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        if feature in FEATURES:
            return _option(family, FEATURES[feature](FAMILIES[family]) or {}, base, work)
        return PRODUCERS[feature](family, base, work)
    finally:
        shutil.rmtree(work)


def refused(family: str, feature: str, sentence: str, room: Path) -> str:
    """Raises AssertionError unless the cell is refused with this sentence before anything is written."""
    with pytest.raises(MergeError) as refusal:
        run(family, feature, room)
    assert sentence in str(refusal.value), str(refusal.value)
    assert refusal.value.exit_code == 3
    return f"refused: {sentence}"


def _option(family: str, options: dict[str, Any], base: Path, work: Path) -> str:
    live = trial.trained(trial.load(base), options, FAMILIES[family])
    with trial.quiet():
        live.save_pretrained(work / "adapter")
    merge.merge(base, work / "adapter", work / "merged", workers=1)
    return trial.judged(FAMILIES[family], live, base, work / "merged")


def _disk_names(family: str, base: Path, work: Path) -> str:
    """As transformers 4 and ColossalAI name modules: as the checkpoint does, expert by expert. The reference needs no names at all."""
    targets = FAMILIES[family].disk
    before = reference.weights(base)
    modules = [key.removesuffix(".weight") for key, value in before.items() if key.endswith(".weight") and value.dim() == 2]
    modules = [module for module in modules if any(f".{module}".endswith(f".{target}") for target in targets)]
    trial.write_disk_adapter(work / "adapter", {module: tuple(before[f"{module}.weight"].shape) for module in modules}, list(targets))
    merge.merge(base, work / "adapter", work / "merged", workers=1)
    after = reference.weights(work / "merged")
    deltas = reference.adapter_deltas(work / "adapter")
    assert after.keys() == before.keys() and len(deltas) == len(modules) > 0  # noqa: PT018
    for key, value in before.items():
        delta = deltas.get(key.removesuffix(".weight"))
        if delta is None:
            assert torch.equal(after[key], value), key
        else:
            assert float((after[key] - (value.double() + delta)).abs().max()) <= 20 * reference.UNIT, key
    return f"{len(modules)} modules by disk names"


def _renamed(family: str, base: Path, work: Path, *, headless: bool) -> str:
    """Without PEFT's prefix, or as trained on the model without its head."""
    live = trial.trained(trial.load(base), FEATURES["lora"](FAMILIES[family]) or {}, FAMILIES[family])
    with trial.quiet():
        live.save_pretrained(work / "adapter")
    path = work / "adapter" / "adapter_model.safetensors"
    prefix = f"base_model.model.{live.base_model.model.base_model_prefix}." if headless else "base_model.model."
    tensors = {name.replace(prefix, "base_model.model." if headless else ""): value for name, value in load_file(path).items()}
    save_file(tensors, path)
    merge.merge(base, work / "adapter", work / "merged", workers=1)
    return trial.judged(FAMILIES[family], live, base, work / "merged")


def _pickle(family: str, base: Path, work: Path) -> str:
    live = trial.trained(trial.load(base), FEATURES["lora"](FAMILIES[family]) or {}, FAMILIES[family])
    with trial.quiet():
        live.save_pretrained(work / "adapter", safe_serialization=False)
    merge.merge(base, work / "adapter", work / "merged", workers=1)
    return trial.judged(FAMILIES[family], live, base, work / "merged")


def _resized(family: str, base: Path, work: Path) -> str:
    """The vocabulary grew before training: PEFT saves the embeddings whole."""
    model = trial.load(base)
    with trial.quiet():
        torch.manual_seed(9)
        model.resize_token_embeddings(RESIZED, mean_resizing=False)
    model.config._name_or_path = str(base)
    live = trial.trained(model, FEATURES["lora"](FAMILIES[family]) or {}, FAMILIES[family])
    with trial.quiet():
        live.save_pretrained(work / "adapter", save_embedding_layers=True)
    merge.merge(base, work / "adapter", work / "merged", workers=1)
    return trial.judged(FAMILIES[family], live, base, work / "merged")


def _head_of_task(family: str, base: Path, work: Path) -> str:
    """Trained with a head that the base has not."""
    name = FAMILIES[family].head
    assert name, "the table names no head"
    with trial.quiet():
        torch.manual_seed(8)
        model = getattr(transformers, name).from_pretrained(base, num_labels=3, dtype=torch.float32)
    task = "TOKEN_CLS" if "Token" in name else "SEQ_CLS"
    chosen = Family(**{**FAMILIES[family].__dict__, "task": task})
    live = trial.trained(model, FEATURES["lora"](chosen) or {}, chosen)
    with trial.quiet():
        live.save_pretrained(work / "adapter")
    merge.merge(base, work / "adapter", work / "merged", workers=1)
    return trial.judged(chosen, live, base, work / "merged")


def _two_adapters(family: str, base: Path, work: Path) -> str:
    """W + 0.7 · Δ₁ − 0.4 · Δ₂, rounded once: the sum of the deltas that each adapter alone would have, in float64."""
    weights, kinds = (0.7, -0.4), ("lora", "patterns")
    total, slack = {name: value.double() for name, value in trial.load(base).state_dict().items()}, {}
    start = {name: value.clone() for name, value in total.items()}
    for number, (weight, kind) in enumerate(zip(weights, kinds, strict=True)):
        live = trial.trained(trial.load(base), FEATURES[kind](FAMILIES[family]) or {}, FAMILIES[family], seed=number)
        with trial.quiet():
            live.save_pretrained(work / f"adapter-{number}")
        values, own = reference.trained(live)
        for name in total:
            total[name] = total[name] + weight * (values[name] - start[name])
            slack[name] = slack.get(name, 0) + own[name]
    merge.merge(base, [work / "adapter-0", work / "adapter-1"], work / "merged", weights=weights, workers=1)
    for name, value in trial.load(work / "merged").state_dict().items():
        assert bool(((value.double() - total[name]).abs() <= slack[name] + 1e-45).all()), name
    return f"{len(total)} parameters"


PRODUCERS = {
    "disk_names": _disk_names,
    "no_prefix": lambda *given: _renamed(*given, headless=False),
    "headless": lambda *given: _renamed(*given, headless=True),
    "pickle": _pickle,
    "resized": _resized,
    "head_of_task": _head_of_task,
    "two_adapters": _two_adapters,
}
