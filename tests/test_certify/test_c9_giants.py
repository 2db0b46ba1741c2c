"""C9 on what real checkpoints add: 61 layers with an MTP layer, numbers that must not stay alive, modules that tokens never reach."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import merge
from certify.checks import c9_layers
from certify.checks.c9_layers import LayerBehaviour
from certify.expect.ledger import build_ledger
from certify.finding import Outcome
from certify.inputs.adapter import open_adapter
from certify.inputs.checkpoint import open_checkpoint
from certify.layers.weights import Weights
from tests.conftest import Pair
from tests.test_certify.layer_cases import behaviour, make

LIVE = 1.2  # numbers alive at once, in units of the largest layer
MTP = "model.layers.3"  # of the proxy with three layers


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def layers_of(base: Path, adapter: Path, merged: Path) -> LayerBehaviour:
    opened, read = open_checkpoint(base), open_adapter(adapter)
    return LayerBehaviour(opened, open_checkpoint(merged), build_ledger(opened, [read], [1.0]), [read], [1.0], "nearest")


def test_sixty_one_layers_and_the_one_behind_them(deep_experts: Pair, tmp_path: Path) -> None:
    merge.merge(deep_experts.base, deep_experts.adapter, tmp_path / "merged")
    layers = layers_of(deep_experts.base, deep_experts.adapter, tmp_path / "merged")
    assert layers.units == ("model.embed_tokens", *(f"model.layers.{number}" for number in range(62)), "model.norm", "lm_head")
    found = [finding for unit in layers.units for finding in layers.examine(unit)]
    assert [(finding.subject, finding.sentence) for finding in found if finding.outcome is not Outcome.PASSED] == []
    assert {finding.figures.get("experts") for finding in found[4:62]} == {4}
    assert 0 < layers.peak <= LIVE * layers.largest_layer


def test_a_loader_that_keeps_everything_breaks_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make("llama", 1e-1, tmp_path)
    case.write(case.sound())
    kept: list[Tensor] = []
    load = Weights.load

    def hoard(weights: Weights, parameter: str, expert: int | None, rows: slice | None) -> Tensor:
        kept.append(load(weights, parameter, expert, rows))
        return kept[-1]

    monkeypatch.setattr(Weights, "load", hoard)
    layers = behaviour(case)
    assert layers.examine("lm_head")[0].outcome is Outcome.PASSED
    assert layers.peak > LIVE * layers.largest_layer


def test_a_fault_in_the_mtp_layer_fails_there_alone(deepseek: Pair, tmp_path: Path) -> None:
    merge.merge(deepseek.base, deepseek.adapter, tmp_path / "merged")
    index = open_checkpoint(tmp_path / "merged")
    file = tmp_path / "merged" / index.weight_map[f"{MTP}.self_attn.o_proj.weight"]
    tensors = load_file(file)
    tensors[f"{MTP}.self_attn.o_proj.weight"] *= 1.02
    save_file(tensors, file, metadata={"format": "pt"})
    layers = layers_of(deepseek.base, deepseek.adapter, tmp_path / "merged")
    found = [finding for unit in layers.units for finding in layers.examine(unit)]
    assert [finding.subject for finding in found if finding.outcome is Outcome.FAILED] == [MTP]


def test_adapted_modules_that_tokens_never_reach_are_named_and_never_pass(tmp_path: Path) -> None:
    base = tmp_path / "base"
    text = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14, projection_dim=32
    )
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_id=60)
    transformers.LlavaForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(base)
    name = next(
        key for key in load_file(base / "model.safetensors") if "vision" in key and key.endswith("layers.0.self_attn.q_proj.weight")
    )
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    path = f"base_model.model.{name.removesuffix('.weight')}"
    save_file(
        {f"{path}.lora_A.weight": torch.randn(4, 32), f"{path}.lora_B.weight": torch.randn(32, 4)}, adapter / "adapter_model.safetensors"
    )
    (adapter / "adapter_config.json").write_text(
        f'{{"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["{name.removesuffix(".weight")}"]}}'
    )
    layers = layers_of(base, adapter, base)
    found = {finding.subject: finding for unit in layers.units for finding in layers.examine(unit)}
    assert {subject for subject, finding in found.items() if finding.outcome is Outcome.NOT_INTERPRETED} == {
        subject for subject in found if subject.endswith("encoder.layers.0")
    }
    named = next(finding for finding in found.values() if finding.outcome is Outcome.NOT_INTERPRETED)
    assert name in named.sentence
    assert c9_layers.WHOLE not in found
