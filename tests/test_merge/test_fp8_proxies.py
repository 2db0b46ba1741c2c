"""Quantised and fused proxies are what they stand for: small, structured as on the hub, read by transformers as by their twin."""

import json
from pathlib import Path

import pytest
import torch
import transformers

from merge.proxies import make_checkpoint
from merge.proxies.checkpoint import FAMILIES
from merge.proxies.quantised import twin
from tests import reference

QUANTISED = [family for family in FAMILIES if "fp8" in family]


@pytest.mark.parametrize("family", [*QUANTISED, "llama4", "qwen3.5-moe"])
def test_it_is_small_and_the_same_for_the_same_seed(family: str, tmp_path: Path) -> None:
    one, other = (make_checkpoint(family, tmp_path / name, seed=3) for name in ("one", "other"))
    assert sum(path.stat().st_size for path in one.iterdir()) < 10e6
    assert {path.name: path.read_bytes() for path in one.iterdir()} == {path.name: path.read_bytes() for path in other.iterdir()}
    tensors = reference.weights(one)
    codes = {name for name, tensor in tensors.items() if tensor.dtype == torch.float8_e4m3fn}
    scales = {name.removesuffix("_inv").removesuffix("_scale") for name in tensors if name.endswith(("_scale", "_scale_inv"))}
    assert codes <= scales
    assert bool(codes) == ("fp8" in family) == ("quantization_config" in json.loads((one / "config.json").read_text()))


def test_the_traps_are_in_their_proxies(tmp_path: Path) -> None:
    made = {name: make_checkpoint(f"deepseek-v3-{name}", tmp_path / name, layers=1) for name in ("fp8-ragged", "fp8-apart", "fp8-ue8m0")}
    ragged = reference.weights(made["fp8-ragged"])
    name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
    assert (ragged[name].shape[0], ragged[f"{name}_scale_inv"].shape[0]) == (576, 5)
    places = json.loads((made["fp8-apart"] / "model.safetensors.index.json").read_text())["weight_map"]
    assert any(places[key] != places[key.removesuffix("_scale_inv")] for key in places if key.endswith("_scale_inv"))
    scales = [value for key, value in reference.weights(made["fp8-ue8m0"]).items() if key.endswith("_scale_inv")]
    assert all(torch.equal(value.log2(), value.log2().round()) for value in scales)


def test_the_twin_holds_what_transformers_reads(tmp_path: Path) -> None:
    base = make_checkpoint("deepseek-v3-fp8", tmp_path / "base", layers=1)
    read, plain = (
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (base, twin(base, tmp_path / "twin"))
    )
    assert read.keys() == plain.keys()
    for name, value in read.items():
        assert torch.equal(value.float(), plain[name].to(value.dtype).float()), name
