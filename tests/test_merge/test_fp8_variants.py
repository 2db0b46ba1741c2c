"""What adapters do beside plain LoRA, on quantised weights: lengths, whole modules, several at once, layers twice.

PEFT's layers say what they mean.
"""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

import merge
from merge.proxies import make_checkpoint
from merge.proxies.quantised import twin
from tests import reference
from tests.test_merge.test_fp8_merge import product_error

VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    "rslora on the embeddings too": {"use_rslora": True, "target_modules": ["embed_tokens", "k_proj"]},
    "a module trained whole": {"target_modules": ["q_proj"], "modules_to_save": ["o_proj"]},
}


@pytest.fixture(scope="module", params=["llama-fp8-channel", "llama-fp8-tensor"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(request.param, tmp_path_factory.mktemp(request.param) / "base", layers=1)


def trained(base: Path, room: Path, settings: dict[str, Any], seed: int = 0) -> tuple[Path, Any]:
    """(a saved adapter, the live model) of the plain twin, whose numbers are the quantised base's."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_pretrained(twin(base, room / "twin"), dtype=torch.float32)
    live = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "modules_to_save" in name:
                parameter.mul_(1.25)
            elif "lora_B" in name or "lora_embedding_B" in name:
                parameter.mul_(0.1)
    live.save_pretrained(room / "adapter", save_embedding_layers=False)
    return room / "adapter", live.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_quantised_weight_takes_what_a_plain_one_takes(variant: str, base: Path, tmp_path: Path) -> None:
    adapter, live = trained(base, tmp_path, VARIANTS[variant])
    values, slack = reference.trained(live)
    stored = reference.weights(base)
    for output_dtype in ("bf16", "same"):
        merge.merge(base, adapter, tmp_path / output_dtype, output_dtype=output_dtype)
        merged = reference.weights(tmp_path / output_dtype)
        changed = [name for name in values if name in merged and stored[name].dtype == torch.float8_e4m3fn]
        assert len(changed) == 7
        for name in changed:
            if output_dtype == "bf16":
                low, high = ((values[name] + side * slack[name]).to(torch.bfloat16) for side in (-1, 1))
                assert bool(((low <= merged[name]) & (merged[name] <= high)).all()), name
            else:
                factors = merged[f"{name}_scale"].double()
                found = merged[name].double()
                ends = [(values[name] + side * slack[name]) / factors for side in (-1, 1)]
                low, high = (
                    (end + side * reference.UNIT * end.abs()).clamp(-448, 448).float().to(torch.float8_e4m3fn).double()
                    for end, side in zip(ends, (-1, 1), strict=True)
                )
                assert bool(((low <= found) & (found <= high)).all()), name


def test_two_adapters_are_summed_before_the_one_rounding(base: Path, tmp_path: Path) -> None:
    settings = {"target_modules": ["q_proj", "gate_proj"]}
    folders = [trained(base, tmp_path / str(seed), settings, seed)[0] for seed in (1, 2)]
    merge.merge(base, folders, tmp_path / "out", output_dtype="bf16", weights=[0.75, -0.5])
    merged, stored = reference.weights(tmp_path / "out"), reference.weights(base)
    deltas = [reference.adapter_deltas(folder) for folder in folders]
    for module in deltas[0]:
        exact = stored[f"{module}.weight"].double() * stored[f"{module}.weight_scale"].double()
        wanted = exact + 0.75 * deltas[0][module] - 0.5 * deltas[1][module]
        slack = 4 * reference.UNIT * (exact.abs() + 0.75 * deltas[0][module].abs() + 0.5 * deltas[1][module].abs())
        slack += product_error(f"{module}.weight", folders[0], 0.75) + product_error(f"{module}.weight", folders[1], 0.5)
        low, high = ((wanted + side * slack).to(torch.bfloat16) for side in (-1, 1))
        assert bool(((low <= merged[f"{module}.weight"]) & (merged[f"{module}.weight"] <= high)).all()), module


def test_replicated_layers_bring_their_scales(tmp_path: Path) -> None:
    """Layers 0, 1, 1 of the base, an adapter on the last one: its weight and scale are another tensor than the second's."""
    base = make_checkpoint("llama-fp8-channel", tmp_path / "base", layers=2)
    adapter, _ = trained(base, tmp_path, {"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]], "layers_to_transform": [2]})
    stored = reference.weights(base)
    for output_dtype in ("same", "bf16"):
        merge.merge(base, adapter, tmp_path / output_dtype, output_dtype=output_dtype)
        merged = reference.weights(tmp_path / output_dtype)
        last, first = "model.layers.2.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"
        ((_, delta),) = reference.adapter_deltas(adapter).items()
        exact = stored[first].double() * stored[f"{first}_scale"].double()
        if output_dtype == "bf16":
            assert torch.equal(merged[first], exact.float().to(torch.bfloat16))
            found, step = merged[last].double(), exact.abs().max() * 2.0**-7
        else:
            assert torch.equal(merged[first].view(torch.uint8), stored[first].view(torch.uint8))
            assert torch.equal(merged[f"{first}_scale"], stored[f"{first}_scale"])
            factors = merged[f"{last}_scale"].double()
            found, step = merged[last].double() * factors, 32 * factors
        assert bool(((found - exact - delta).abs() <= step).all())
