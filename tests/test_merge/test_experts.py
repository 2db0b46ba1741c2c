"""Experts in one tensor or one by one, on either side, as every version of PEFT and other trainers wrote their adapters."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import save_file

import certify
import merge
from certify.verdict import Verdict
from merge.errors import MergeError
from tests import reference
from tests.matrix import trial
from tests.matrix.families import EXPERTS, FAMILIES, GROUPED

E, R = 4, 4  # experts, rank
ROUNDING = 20 * reference.UNIT  # float32 sums of values around 0.5: half a dozen roundings of a few 2⁻²⁵ each


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def write(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file({f"base_model.model.{name}": value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "r": R, "lora_alpha": 2 * R, "target_modules": [], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    return folder


def square(name: str) -> Callable[[], Any]:
    """Experts whose matrices are square, so that no shape tells how an adapter was trained."""
    if name == "gpt_oss":
        return lambda: t.GptOssForCausalLM(
            t.GptOssConfig(**GROUPED | {"intermediate_size": 32}, head_dim=8, num_local_experts=E, num_experts_per_tok=2)
        )
    return lambda: t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**GROUPED | EXPERTS | {"moe_intermediate_size": 32}, head_dim=8))


def down(base: Path, layer: int) -> torch.Tensor:
    """(experts, …) of one layer in memory's order, by transformers' own loader."""
    parameter = trial.load(base).state_dict()[f"model.layers.{layer}.mlp.experts.down_proj"]
    return parameter.double()


@pytest.mark.parametrize(
    ("family", "version", "transposed"),
    [
        *[("qwen3_moe", version, turned) for version, turned in (("0.17.1", True), ("0.18.1", True), ("0.19.0", True), ("0.21.2", False))],
        *[("gpt_oss", version, turned) for version, turned in (("0.18.1", True), ("0.19.0", False), ("0.19.1", True), ("0.21.2", True))],
    ],
)
def test_square_experts_are_read_as_the_version_wrote_them(family: str, version: str, transposed: bool, room: Path, tmp_path: Path) -> None:
    base = trial.made(square(family), room / f"square-{family}")
    torch.manual_seed(2)
    a, b = torch.randn(2, R * E, 32) * 0.1, torch.randn(2, 32, R * E) * 0.1
    tensors = {f"model.layers.{n}.mlp.experts.lora_{half}.weight": x[n] for n in range(2) for half, x in (("A", a), ("B", b))}
    adapter = write(tmp_path / "adapter", tensors, target_parameters=["mlp.experts.down_proj"], peft_version=version)
    merge.merge(base, adapter, tmp_path / "merged")
    for n in range(2):
        product = b[n].double().reshape(32, R, E).permute(2, 0, 1) @ a[n].double().reshape(E, R, 32)
        expected = down(base, n) + 2 * (product.mT if transposed else product)
        assert float((down(tmp_path / "merged", n) - expected).abs().max()) < ROUNDING


def test_square_experts_without_a_version_are_refused(room: Path, tmp_path: Path) -> None:
    base = trial.made(square("qwen3_moe"), room / "square-qwen3_moe")
    tensors = {
        f"model.layers.{n}.mlp.experts.lora_{half}.weight": torch.ones((R * E, 32) if half == "A" else (32, R * E))
        for n in (0, 1)
        for half in "AB"
    }
    adapter = write(tmp_path / "adapter", tensors, target_parameters=["mlp.experts.down_proj"])
    with pytest.raises(MergeError, match="names no peft_version: which way round they were trained cannot be known"):
        merge.merge(base, adapter, tmp_path / "merged")


def test_old_experts_whose_shape_tells_are_merged_without_a_version(room: Path, tmp_path: Path) -> None:
    """PEFT 0.17 trained A over a stack's second axis; the matrices are not square, and only one reading fits."""
    base = trial.make_base("qwen3_moe", room)
    torch.manual_seed(2)
    shape = down(base, 0).shape  # (experts, hidden, inter)
    a, b = torch.randn(2, R * E, shape[1]) * 0.1, torch.randn(2, shape[2], R * E) * 0.1
    tensors = {f"model.layers.{n}.mlp.experts.lora_{half}.weight": x[n] for n in range(2) for half, x in (("A", a), ("B", b))}
    adapter = write(tmp_path / "adapter", tensors, target_parameters=["mlp.experts.down_proj"])
    merge.merge(base, adapter, tmp_path / "merged")
    product = b[1].double().reshape(shape[2], R, E).permute(2, 0, 1) @ a[1].double().reshape(E, R, shape[1])
    assert float((down(tmp_path / "merged", 1) - down(base, 1) - 2 * product.mT).abs().max()) < ROUNDING


@pytest.mark.parametrize("layout", ["rank_major", "grouped_by_expert"])
def test_the_marker_of_lora_b_is_honoured(layout: str, room: Path, tmp_path: Path) -> None:
    base = trial.make_base("qwen3_moe", room)
    torch.manual_seed(2)
    shape = down(base, 0).shape
    a, b = torch.randn(2, R * E, shape[2]) * 0.1, torch.randn(2, shape[1], R * E) * 0.1
    tensors = {f"model.layers.{n}.mlp.experts.lora_{half}.weight": x[n] for n in range(2) for half, x in (("A", a), ("B", b))}
    adapter = write(tmp_path / "adapter", tensors, target_parameters=["mlp.experts.down_proj"], peft_version="0.21.2", lora_B_layout=layout)
    merge.merge(base, adapter, tmp_path / "merged")
    split = (
        b[0].double().reshape(shape[1], R, E).permute(2, 0, 1)
        if layout == "rank_major"
        else b[0].double().reshape(-1, E, R).transpose(0, 1)
    )
    expected = down(base, 0) + 2 * split @ a[0].double().reshape(E, R, shape[2])
    assert float((down(tmp_path / "merged", 0) - expected).abs().max()) < ROUNDING


def test_experts_one_by_one_into_a_checkpoint_that_stacks_them(room: Path, tmp_path: Path) -> None:
    """The checkpoint holds all experts of a layer in one tensor, as some are published; the adapter names each expert."""
    source = trial.make_base("qwen3_moe", room)
    base = tmp_path / "stacked"
    tensors = {name: value.contiguous() for name, value in trial.load(source).state_dict().items()}
    reference.saved_like(source, tensors, base)
    modules = {
        f"model.layers.1.mlp.experts.{e}.{p}_proj": (32, 24) if p == "down" else (24, 32) for e in range(E) for p in ("gate", "up", "down")
    }
    trial.write_disk_adapter(tmp_path / "adapter", modules, ["gate_proj", "up_proj", "down_proj"])
    merge.merge(base, tmp_path / "adapter", tmp_path / "merged")
    got, deltas = reference.weights(tmp_path / "merged"), reference.adapter_deltas(tmp_path / "adapter")
    for e in range(E):
        gate, up, lowered = (deltas[f"model.layers.1.mlp.experts.{e}.{p}_proj"] for p in ("gate", "up", "down"))
        for leaf, delta in (("gate_up_proj", torch.cat([gate, up])), ("down_proj", lowered)):
            key = f"model.layers.1.mlp.experts.{leaf}"
            assert float((got[key][e] - tensors[key][e].double() - delta).abs().max()) < ROUNDING
    assert torch.equal(got["model.layers.0.mlp.experts.down_proj"], tensors["model.layers.0.mlp.experts.down_proj"])


def test_experts_that_the_checkpoint_stores_the_other_way_round(room: Path, tmp_path: Path) -> None:
    """Qwen3-VL-MoE is published both as (experts, in, out) and as (experts, out, in); transformers turns the one that differs."""
    source = trial.make_base("qwen3_vl_moe", room)
    turned = {k: v.mT.contiguous() if k.endswith("experts.down_proj") else v for k, v in reference.weights(source).items()}
    base = reference.saved_like(source, turned, tmp_path / "base")
    family = FAMILIES["qwen3_vl_moe"]
    live = trial.trained(trial.load(base), {"target_modules": [], "target_parameters": list(family.experts)}, family)
    with trial.quiet():
        live.save_pretrained(tmp_path / "adapter")
    merge.merge(base, tmp_path / "adapter", tmp_path / "merged")
    trial.judged(family, live, base, tmp_path / "merged")
    name = next(key for key in turned if key.endswith("experts.down_proj"))
    assert reference.weights(tmp_path / "merged")[name].shape == turned[name].shape != reference.weights(source)[name].shape


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "deepseek_v3"])
@pytest.mark.parametrize("targets", ["disk", "all-linear"])
def test_experts_that_were_targeted_by_the_names_of_modules(family: str, targets: str, room: Path, tmp_path: Path) -> None:
    """What most people ask for: PEFT turns the names into those of fused parameters, which it saves without their module."""
    base, chosen = trial.make_base(family, room), FAMILIES[family]
    live = trial.trained(trial.load(base), {"target_modules": list(chosen.disk) if targets == "disk" else targets}, chosen)
    with trial.quiet():
        live.save_pretrained(tmp_path / "adapter")
    assert "gate_up_proj" in json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_parameters"]
    merge.merge(base, tmp_path / "adapter", tmp_path / "merged", workers=1)
    trial.judged(chosen, live, base, tmp_path / "merged")
    certificate = certify.judge(base, tmp_path / "adapter", tmp_path / "merged", level="layers" if family == "mixtral" else "weights")
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason
