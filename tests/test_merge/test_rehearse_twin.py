"""The twin itself: what it keeps of every family and feature, and where none can be made."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from merge.catalog import Tensor, compose
from merge.errors import MergeError
from merge.forecast import prepared
from merge.planner import Options
from merge.proxies import make_adapter, make_checkpoint
from merge.rehearse import gate, pace, twin
from merge.rehearse.dimensions import Cut
from merge.source import read_base
from merge.task import Merge
from tests.matrix import trial
from tests.matrix.families import FAMILIES
from tests.matrix.features import FEATURES


def asked(base: Path, adapter: Path, out: Path) -> Merge:
    return prepared(base, [adapter], out, "same", Options())


def held(base: Path) -> dict[str, Tensor]:
    return {tensor.name: tensor for catalog in read_base(base) for tensor in catalog.tensors}


def pattern(shape: tuple[int, ...]) -> list[int]:
    return [shape.index(length) for length in shape]


def kinds(weight: Tensor, block: int) -> list[tuple[bool, bool]]:
    return [(length > block, bool(length % block)) for length in weight.shape]


@pytest.mark.parametrize(
    ("family", "style"), [("deepseek-v3-fp8-ragged", "peft"), ("deepseek-v3", "colossalai"), ("qwen2", "peft"), ("qwen3.5-moe", "peft")]
)
def test_a_twin_keeps_keys_dtypes_files_forms_and_blocks(family: str, style: str, tmp_path: Path) -> None:
    base = make_checkpoint(family, tmp_path / "base")
    real = asked(base, make_adapter(base, tmp_path / "adapter", style=style), tmp_path / "out")
    made = twin.make(real, tmp_path / "twin")
    large, small = held(base), held(made.work.base)
    assert made.sketch.cut.factor > 1
    assert made.size == sum(path.stat().st_size for path in (tmp_path / "twin").rglob("*") if path.is_file())
    assert [(t.name, t.dtype, t.file) for t in large.values()] == [(t.name, t.dtype, t.file) for t in small.values()]
    assert all(pattern(tensor.shape) == pattern(small[name].shape) for name, tensor in large.items() if "_scale" not in name)
    assert made.work.plan.counts == real.plan.counts
    assert made.work.plan.adapter_tensors == real.plan.adapter_tensors
    config = json.loads((made.work.base / "config.json").read_text())
    block = config.get("quantization_config", {}).get("weight_block_size", [1])[0]
    for name, tensor in large.items():
        if f"{name}_scale_inv" in large:
            assert kinds(tensor, 128) == kinds(small[name], block)
            assert small[f"{name}_scale_inv"].shape == tuple(-(-length // block) for length in small[name].shape)


@pytest.mark.parametrize("feature", ["patterns", "embedding_dora", "saved_alike", "token_rows"])
def test_an_adapter_keeps_its_features_and_every_tensor(feature: str, tmp_path: Path) -> None:
    base, family = trial.make_base("llama_tied", tmp_path), FAMILIES["llama_tied"]
    options = FEATURES[feature](family)
    assert options is not None, "the family has what each of these features adapts"
    with trial.quiet():
        trial.trained(trial.load(base), options, family).save_pretrained(tmp_path / "adapter")
    real = asked(base, tmp_path / "adapter", tmp_path / "out")
    made = twin.make(real, tmp_path / "twin").work
    own, before = (load_file(folder / "adapter_model.safetensors") for folder in (made.adapters[0], tmp_path / "adapter"))
    assert own.keys() == before.keys()
    assert all(own[name].dtype == tensor.dtype for name, tensor in before.items())
    settings, was = (json.loads((folder / "adapter_config.json").read_text()) for folder in (made.adapters[0], tmp_path / "adapter"))
    ranked = ("r", "rank_pattern", "trainable_token_indices")
    assert {key: value for key, value in settings.items() if key not in ranked} == {k: v for k, v in was.items() if k not in ranked}
    assert settings["r"] < was["r"]
    assert made.plan.edits == real.plan.edits


def test_where_nothing_can_be_cut_the_refusal_says_why(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    specs = [("block.weight", "BF16", (48, 64)), ("block.table", "BF16", (64, 64, 64, 64, 8))]
    with (base / "model.safetensors").open("wb") as stream:
        catalog = compose("model.safetensors", specs, {})
        stream.write(catalog.header)
        stream.truncate(catalog.size)
    (base / "config.json").write_text(json.dumps({"architectures": ["NobodyKnows"], "model_type": "nobody"}))
    pairs = [("base_model.model.block.lora_A.weight", "F32", (4, 64)), ("base_model.model.block.lora_B.weight", "F32", (48, 4))]
    with (adapter / "adapter_model.safetensors").open("wb") as stream:
        catalog = compose("adapter_model.safetensors", pairs, {})
        stream.write(catalog.header)
        stream.truncate(catalog.size)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["block"]}))
    real = asked(base, adapter, tmp_path / "out")
    with pytest.raises(MergeError, match=r"no twin of .* below 50 MB can be made") as refusal:
        twin.make(real, tmp_path / "twin")
    assert refusal.value.exit_code == 3
    assert "bytes, which is too much" in str(refusal.value)
    assert str(refusal.value).endswith("Nothing was written.")
    assert not (tmp_path / "twin").exists()
    assert pace.measure(real, tmp_path, workers=1, planned=0.0).imagined


def test_a_cut_keeps_products_and_pairs() -> None:
    config = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
    tokens = {"bos_token_id": 128000, "eos_token_id": [128001, 128009], "num_hidden_layers": 32, "num_local_experts": 8}
    vision = {"vision_config": {"hidden_size": 1280, "num_heads": 16, "out_hidden_size": 4096}}
    small = Cut(64, 1, 2, frozenset()).config(config | tokens | vision)
    dim = small["hidden_size"] / small["num_attention_heads"]
    assert (small["hidden_size"], small["intermediate_size"]) == (64, 224)
    assert (dim % 2, small["num_attention_heads"] % small["num_key_value_heads"]) == (0, 0)
    assert (small["num_hidden_layers"], small["num_local_experts"]) == (32, 8)
    assert small["vision_config"]["out_hidden_size"] == small["hidden_size"]
    assert len({small["bos_token_id"], *small["eos_token_id"]}) == 3
    assert max(small["bos_token_id"], *small["eos_token_id"]) < small["vocab_size"]


def test_of_a_giant_one_layer_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_checkpoint("deepseek-v3", tmp_path / "base", layers=13)
    real = asked(base, make_adapter(base, tmp_path / "adapter", style="colossalai"), tmp_path / "out")
    assert (gate.level(real), gate.sample(real)) == ("layers", None)
    monkeypatch.setattr(gate, "MANY", 100)
    assert (gate.level(real), gate.sample(real)) == ("weights", "model.layers.3"), "before it layers are dense"


def test_a_part_that_was_judged_is_spotless_only_where_nothing_is_against_it() -> None:
    found = gate.Judgement("INCOMPLETE", "layers", 9, {"C2": 9, "C5": 3}, {}, (), 1.0)
    assert found.spotless
    assert replace(found, passed={"C2": 9}, undecided={"C9": 1}).spotless
    assert not replace(found, passed={"C2": 9, "C5": 0}).spotless, "nothing was run"
    assert not replace(found, failures=(("C9", "model.layers.2", "…"),)).spotless
    assert not replace(found, verdict="REJECTED").spotless
