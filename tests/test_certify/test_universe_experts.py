"""Experts in layouts that no PEFT of today writes, merged by the textbook: the right reading is certified, the wrong one rejected."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import certify
from certify.verdict import Certificate, Verdict
from tests import reference
from tests.matrix import trial

EXPERTS, RANK, HIDDEN, INNER = 4, 4, 32, 24


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that stores all experts of a layer in one tensor."""
    room = tmp_path_factory.mktemp("experts")
    source = trial.make_base("qwen3_moe", room)
    tensors = {name: value.contiguous() for name, value in trial.load(source).state_dict().items()}
    return reference.saved_like(source, tensors, room / "stacked")


def judged(base: Path, adapter: Path, deltas: dict[str, torch.Tensor], merged: Path) -> Certificate:
    tensors = reference.weights(base)
    changed = {key: (tensors[key].double() + delta).to(tensors[key].dtype) for key, delta in deltas.items()}
    return certify.judge(base, [adapter], reference.saved_like(base, tensors | changed, merged), level="modules")


@pytest.mark.parametrize("layout", ["rank_major", "grouped_by_expert"])
def test_the_marker_of_lora_b_decides_whose_columns_they_are(layout: str, stacked: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    readings: dict[str, dict[str, torch.Tensor]] = {"rank_major": {}, "grouped_by_expert": {}}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    saved = {}
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.experts"
        a, b = torch.randn(RANK * EXPERTS, INNER) * 0.1, torch.randn(HIDDEN, RANK * EXPERTS) * 0.1
        saved |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
        down = a.double().reshape(EXPERTS, RANK, INNER)
        readings["rank_major"][f"{name}.down_proj"] = 2 * b.double().reshape(HIDDEN, RANK, EXPERTS).permute(2, 0, 1) @ down
        readings["grouped_by_expert"][f"{name}.down_proj"] = 2 * b.double().reshape(HIDDEN, EXPERTS, RANK).permute(1, 0, 2) @ down
    save_file(saved, adapter / "adapter_model.safetensors")
    terms = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": [], "task_type": "CAUSAL_LM"}
    terms |= {"target_parameters": ["mlp.experts.down_proj"], "peft_version": "0.21.2", "lora_B_layout": layout}
    (adapter / "adapter_config.json").write_text(json.dumps(terms))
    verdicts = {reading: judged(stacked, adapter, deltas, tmp_path / reading).verdict for reading, deltas in readings.items()}
    assert verdicts.pop(layout) is Verdict.CERTIFIED
    assert set(verdicts.values()) == {Verdict.REJECTED}


def test_single_experts_in_a_tensor_of_all(stacked: Path, tmp_path: Path) -> None:
    parts = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
    modules = {f"model.layers.1.mlp.experts.{e}.{part}_proj": shape for e in range(EXPERTS) for part, shape in parts.items()}
    trial.write_disk_adapter(tmp_path / "adapter", modules, [f"{part}_proj" for part in parts])
    found = reference.adapter_deltas(tmp_path / "adapter")

    def stack(order: list[int], *parts: str) -> torch.Tensor:
        return torch.stack([torch.cat([found[f"model.layers.1.mlp.experts.{e}.{part}_proj"] for part in parts]) for e in order])

    def deltas(order: list[int], *gated: str) -> dict[str, torch.Tensor]:
        name = "model.layers.1.mlp.experts"
        return {f"{name}.gate_up_proj": stack(order, *gated), f"{name}.down_proj": stack(order, "down")}

    right, swapped, halves = deltas([0, 1, 2, 3], "gate", "up"), deltas([1, 0, 2, 3], "gate", "up"), deltas([0, 1, 2, 3], "up", "gate")
    certificate = judged(stacked, tmp_path / "adapter", right, tmp_path / "right")
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason
    for name, wrong in {"swapped": swapped, "halves": halves}.items():
        assert judged(stacked, tmp_path / "adapter", wrong, tmp_path / name).verdict is Verdict.REJECTED
