"""Adapters that no option of today's PEFT makes: older conventions, other producers' layouts, architectures that nobody knows."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import merge
from merge import planner
from merge.__main__ import app
from merge.errors import MergeError
from tests import reference
from tests.matrix import cell, trial
from tests.matrix.families import FAMILIES, GROUPED, Family
from tests.matrix.features import FEATURES

E, R = 4, 4  # experts, rank
ROUNDING = 20 * reference.UNIT  # float32 sums of values around 0.5: half a dozen roundings of a few 2⁻²⁵ each


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "glm4_moe", "phimoe"])
def test_peft_itself_loses_adapters_of_transformers_4(family: str, room: Path, tmp_path: Path) -> None:
    """What PEFT merges out of an adapter by disk names is not what the adapter says; ours is (disk_names in the matrix)."""
    base = trial.make_base(family, room)
    before, targets = reference.weights(base), FAMILIES[family].disk
    shapes = {
        key.removesuffix(".weight"): tuple(value.shape) for key, value in before.items() if key.endswith(".weight") and value.dim() == 2
    }
    shapes = {module: shape for module, shape in shapes.items() if any(f".{module}".endswith(f".{target}") for target in targets)}
    trial.write_disk_adapter(tmp_path / "adapter", shapes, list(targets))
    with trial.quiet():
        peft.PeftModel.from_pretrained(trial.load(base), tmp_path / "adapter").merge_and_unload().save_pretrained(tmp_path / "peft")
    theirs = reference.weights(tmp_path / "peft")
    lost = [module for module in shapes if torch.equal(theirs[f"{module}.weight"], before[f"{module}.weight"])]
    assert lost, "PEFT has learned it: then this family is no example any more"


def test_an_architecture_that_nobody_knows_is_taken_literally(llama: Any, tmp_path: Path) -> None:
    base = shutil.copytree(llama.base, tmp_path / "base")
    (base / "config.json").write_text('{"architectures": ["NobodyForCausalLM"], "auto_map": {"AutoModel": "evil.Nobody"}}')
    merge.merge(base, llama.adapter, tmp_path / "merged")
    merge.merge(llama.base, llama.adapter, tmp_path / "known")
    literal, known = reference.weights(tmp_path / "merged"), reference.weights(tmp_path / "known")
    assert all(torch.equal(literal[name], known[name]) for name in known)
    shown = CliRunner().invoke(app, ["plan", f"--base={base}", f"--adapter={llama.adapter}", f"--out={tmp_path / 'x'}"])
    assert shown.exit_code == 0
    assert "names were taken as they stand" in shown.output
    assert (
        "model.layers.0.self_attn.q_proj.weight  BF16 (128, 128)  ←  base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        in shown.output
    )


SMALL = ("dora", "embedding_dora", "experts", "token_rows", "lora_bias", "embedding_and_head", "two_adapters", "replicated_layers")


@pytest.mark.parametrize(
    ("family", "feature"),
    [("llama_tied", f) for f in SMALL if f not in ("experts", "lora_bias")]
    + [
        ("gpt2", "dora"),
        ("gpt_oss", "experts"),
        ("granitemoe", "experts"),
        ("qwen3_moe", "experts"),
        ("opt", "lora_bias"),
        ("vit", "convolution_dora"),
    ],
)
def test_slabs_of_a_few_rows_give_the_same(family: str, feature: str, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny tensors fit into one slab: with slabs of 600 bytes every step meets borders, inside an expert and between two."""
    monkeypatch.setattr(planner, "MIB", 600)
    cell.run(family, feature, room)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_fold_over_the_whole_tensor_has_one_order(workers: int, room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "MIB", 600)
    base = trial.make_base("gpt2", room)
    options = {"target_modules": ["c_attn"], "use_dora": True}
    live = trial.trained(trial.load(base), options, FAMILIES["gpt2"])
    with trial.quiet():
        live.save_pretrained(tmp_path / "adapter")
    one, many = (merge.merge(base, tmp_path / "adapter", tmp_path / str(n), workers=n) for n in (2, workers + 3))
    assert one.shards == many.shards


def test_a_layer_that_the_model_never_calls(tmp_path: Path) -> None:
    """Jamba reads dt_proj's weight and never calls the layer: an adapter on it has learned nothing, and must say nothing."""
    shape = {"num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}
    periods = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    base = trial.made(lambda: t.JambaForCausalLM(t.JambaConfig(**GROUPED | shape | periods)), tmp_path / "base")
    family = Family(lambda: None, ("x",), "x")
    live = trial.trained(trial.load(base), {"target_modules": ["in_proj", "dt_proj"]}, family)
    with torch.no_grad(), trial.quiet():
        for name, value in live.named_parameters():
            if "dt_proj.lora_B" in name:
                value.zero_()
        live.save_pretrained(tmp_path / "silent")
        for name, value in live.named_parameters():
            if "dt_proj.lora_B" in name:
                value.fill_(0.1)
        live.save_pretrained(tmp_path / "loud")
    assert merge.merge(base, tmp_path / "silent", tmp_path / "merged").tensors["merged"] == 1
    with pytest.raises(MergeError, match=r"1 adapted weights are read by the model without calling their layers(.|\n)*dt_proj"):
        merge.merge(base, tmp_path / "loud", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_magnitudes_spelled_with_weight(room: Path, tmp_path: Path) -> None:
    base = trial.make_base("llama", room)
    live = trial.trained(trial.load(base), {"target_modules": ["q_proj"], "use_dora": True}, FAMILIES["llama"])
    with trial.quiet():
        live.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name + ".weight" * name.endswith("magnitude_vector"): value for name, value in load_file(path).items()}, path)
    merge.merge(base, tmp_path / "adapter", tmp_path / "merged")
    trial.judged(FAMILIES["llama"], live, base, tmp_path / "merged")


def test_two_adapters_from_the_command_line(llama: Any, tmp_path: Path) -> None:
    """One rounding of the whole sum in bf16: not the merge of a merge."""
    second = shutil.copytree(llama.adapter, tmp_path / "second")
    path = second / "adapter_model.safetensors"
    save_file({name: value.flip(0) for name, value in load_file(path).items()}, path)
    given = [f"--base={llama.base}", f"--adapter={llama.adapter}", f"--adapter={second}", "--weight=0.7", "--weight=-0.25", "--quiet"]
    assert CliRunner().invoke(app, ["run", *given, f"--out={tmp_path / 'merged'}"]).exit_code == 0
    got, base = reference.weights(tmp_path / "merged"), reference.weights(llama.base)
    one, other = (reference.adapter_deltas(folder) for folder in (llama.adapter, second))
    for module, delta in one.items():
        exact = base[f"{module}.weight"].double() + 0.7 * delta - 0.25 * other[module]
        assert int((got[f"{module}.weight"] != exact.bfloat16()).sum()) <= 2  # float32 sums on the other side of a tie
    manifest = json.loads((tmp_path / "merged" / "merge-manifest.json").read_text())
    assert [adapter["weight"] for adapter in manifest["adapters"]] == [0.7, -0.25]
    assert SimpleNamespace(**manifest).tensors["merged"] == len(one)


HISTORY = [  # (family, module as an adapter of some year names it, the checkpoint's own name as a regular expression)
    ("llava", "language_model.model.layers.0.self_attn.q_proj", r"language_model.*layers\.0\.self_attn\.q_proj"),
    ("llava", "model.language_model.layers.0.self_attn.q_proj", r"language_model.*layers\.0\.self_attn\.q_proj"),
    ("llava", "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj", r"vision_tower.*layers\.0\.self_attn\.q_proj"),
    ("llava", "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj", r"vision_tower.*layers\.0\.self_attn\.q_proj"),
    ("llava", "language_model.lm_head", r".*lm_head"),
    ("llava", "lm_head", r".*lm_head"),
    ("llava", "multi_modal_projector.linear_1", r".*multi_modal_projector\.linear_1"),
    ("qwen2_vl", "model.layers.0.self_attn.q_proj", r".*layers\.0\.self_attn\.q_proj"),
    ("qwen2_vl", "model.language_model.layers.0.self_attn.q_proj", r".*layers\.0\.self_attn\.q_proj"),
    ("qwen2_vl", "visual.blocks.0.attn.qkv", r".*visual\.blocks\.0\.attn\.qkv"),
    ("qwen2_vl", "model.visual.blocks.0.attn.qkv", r".*visual\.blocks\.0\.attn\.qkv"),
    ("vit", "vit.encoder.layer.0.attention.attention.query", r"vit\..*0\.attention\.(attention\.query|q_proj)"),
    ("vit", "vit.layers.0.attention.q_proj", r"vit\..*0\.attention\.(attention\.query|q_proj)"),
    ("gpt_neox", "embed_out", "embed_out"),
    ("gpt_neox", "lm_head", "embed_out"),
    ("llama", "layers.1.mlp.up_proj", r"model\.layers\.1\.mlp\.up_proj"),
    ("mixtral", "model.layers.0.block_sparse_moe.gate", r"model\.layers\.0\.block_sparse_moe\.gate"),
    ("mixtral", "model.layers.0.mlp.gate", r"model\.layers\.0\.block_sparse_moe\.gate"),
    ("phimoe", "model.layers.0.block_sparse_moe.gate", r"model\.layers\.0\.block_sparse_moe\.gate"),
    ("granitemoe", "model.layers.0.block_sparse_moe.router.layer", r"model\.layers\.0\.block_sparse_moe\.router\.layer"),
]


@pytest.mark.parametrize(("family", "module", "key"), HISTORY, ids=[f"{family}-{module}" for family, module, _ in HISTORY])
def test_names_of_every_year_meet_the_checkpoint(family: str, module: str, key: str, room: Path, tmp_path: Path) -> None:
    base = trial.make_base(family, room)
    (found,) = [name for name in reference.weights(base) if re.fullmatch(rf"{key}\.weight", name)]
    shape = tuple(reference.weights(base)[found].shape)
    trial.write_disk_adapter(tmp_path / "adapter", {module: shape}, [module])
    made = merge.plan(base, tmp_path / "adapter", tmp_path / "out")
    assert [operation.target.name for operation in made.operations if operation.kind == "merge"] == [found]


@pytest.mark.parametrize(
    ("family", "feature"),
    [
        *[("llama", feature) for feature in ("lora", "dora", "embedding_dora", "head")],
        *[("gpt2", "dora"), ("opt", "lora_bias"), ("qwen3_moe", "experts"), ("gpt_oss", "experts"), ("vit", "convolution_dora")],
    ],
)
def test_every_kind_is_rounded_once(family: str, feature: str, room: Path, tmp_path: Path) -> None:
    """A bf16 base: each value lies within half a unit in the last place of the float64 one, and of what float32 sums may miss."""
    source = trial.make_base(family, room)
    base = reference.saved_like(source, {name: value.bfloat16() for name, value in reference.weights(source).items()}, tmp_path / "base")
    live = trial.trained(trial.load(base), FEATURES[feature](FAMILIES[family]) or {}, FAMILIES[family])
    with trial.quiet():
        live.save_pretrained(tmp_path / "adapter")
    merge.merge(base, tmp_path / "adapter", tmp_path / "merged")
    values, slack = reference.trained(live)
    for name, value in trial.load(tmp_path / "merged").state_dict().items():
        half = torch.exp2(torch.frexp(values[name].abs() + slack[name]).exponent.double() - 9)  # bf16 has 8 bits: the unit is 2^(e − 8)
        assert bool(((value.double() - values[name]).abs() <= half + slack[name]).all()), name


@pytest.mark.parametrize("output_dtype", ["same", "fp32"])
def test_an_untied_head_stands_in_the_index(output_dtype: str, qwen2: Any, tmp_path: Path) -> None:
    """Tied, in two shards: the head gets a tensor of its own in the last one, and the configuration says so."""
    shape = tuple(reference.weights(qwen2.base)["model.embed_tokens.weight"].shape)
    trial.write_disk_adapter(tmp_path / "adapter", {"lm_head": shape}, ["lm_head"])
    merge.merge(qwen2.base, tmp_path / "adapter", tmp_path / "merged", output_dtype=output_dtype)
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    before, after = reference.weights(qwen2.base), reference.weights(tmp_path / "merged")
    assert set(index["weight_map"]) == after.keys() == before.keys() | {"lm_head.weight"}
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in after.values())
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["dtype"] == {"same": "bfloat16", "fp32": "float32"}[output_dtype]
    assert torch.equal(after["model.embed_tokens.weight"].float(), before["model.embed_tokens.weight"].float())
    exact = before["model.embed_tokens.weight"].double() + reference.adapter_deltas(tmp_path / "adapter")["lm_head"]
    if output_dtype == "fp32":
        assert float((after["lm_head.weight"].double() - exact).abs().max()) < ROUNDING
    else:
        assert int((after["lm_head.weight"] != exact.bfloat16()).sum()) <= 2
    assert merge.merge(qwen2.base, tmp_path / "adapter", tmp_path / "merged", output_dtype=output_dtype).tensors["merged"] == 1
