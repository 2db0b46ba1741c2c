"""All experts of a layer in one tensor, plain and quantised: cut along experts and inside them, each with its own scales and factors."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import merge
from merge.proxies import make_adapter, make_checkpoint
from tests import reference

HEIGHT, WIDTH = 24, 32  # of a block: 64 and 32 rows of an expert end in the middle of one
WHERE = {
    "qwen3.5-moe": ("model.language_model.layers.", ".mlp.experts."),
    "llama4": ("language_model.model.layers.", ".feed_forward.experts."),
}


@pytest.fixture(scope="module", params=WHERE)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    room = tmp_path_factory.mktemp(request.param)
    base = make_checkpoint(request.param, room / "base")
    return request.param, base, make_adapter(base, room / "adapter")


def experts(family: str, base: Path, adapter: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Disk key → (Δ, a float32 product's error) of every stack of experts: A holds expert after expert, B rank after rank."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    scaling, tensors, found = config["lora_alpha"] / config["r"], load_file(adapter / "adapter_model.safetensors"), {}
    for key, value in reference.weights(base).items():
        prefix, middle = WHERE[family]
        if not key.startswith(prefix) or middle not in key:
            continue
        layer, leaf = key.removeprefix(prefix).split(".")[0], key.rpartition(".")[2]
        end = f".{layer}{middle}" + ("base_layer." if leaf == "gate_up_proj" else "")  # the parameter that is registered first lies deepest
        ((a, b),) = [(tensors[name], tensors[name.replace("lora_A", "lora_B")]) for name in tensors if name.endswith(f"{end}lora_A.weight")]
        a, b = a.double().view(len(value), -1, a.shape[1]), b.double().view(len(b), -1, len(value)).permute(2, 0, 1)
        delta, size = scaling * (b @ a), (a.shape[1] + 3) * reference.UNIT * scaling * (b.abs() @ a.abs())
        found[key] = delta, size  # Llama 4 stores (in, out), and PEFT, which is not told, adapts it as it lies
    return found


def test_every_expert_gets_its_own_delta_and_the_rest_is_carried(pair: tuple[str, Path, Path], tmp_path: Path) -> None:
    family, base, adapter = pair
    merge.merge(base, adapter, tmp_path / "out")
    before, merged, deltas = reference.weights(base), reference.weights(tmp_path / "out"), experts(*pair)
    assert merged.keys() == before.keys()
    assert len(deltas) == {"qwen3.5-moe": 4, "llama4": 2}[family]
    for key, (delta, size) in deltas.items():
        slack = size + 2 * reference.UNIT * (before[key].double().abs() + delta.abs())
        low, high = ((before[key].double() + delta + side * slack).to(torch.bfloat16) for side in (-1, 1))
        assert bool(((low <= merged[key]) & (merged[key] <= high)).all()), key
    carried = [key for key in before if key.startswith(("mtp.", "model.visual.", "vision_model.", "multi_modal_projector."))]
    assert len(carried) > 20
    assert all(torch.equal(merged[key], before[key]) for key in carried)


@pytest.fixture(scope="module")
def quantised(pair: tuple[str, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with its fused experts as fp8, one row of scales per matrix of the stack."""
    _, base, _ = pair
    copy = shutil.copytree(base, tmp_path_factory.mktemp("fp8") / "base")
    tensors = reference.weights(base)
    for key in experts(*pair):
        weight = tensors[key].float()
        count, rows, columns = weight.shape
        padded = torch.nn.functional.pad(weight, (0, -columns % WIDTH, 0, -rows % HEIGHT))
        blocks = padded.view(count, padded.shape[1] // HEIGHT, HEIGHT, -1, WIDTH)
        scales = blocks.abs().amax((2, 4)) / 448
        codes = (blocks / scales[:, :, None, :, None]).view(padded.shape)[:, :rows, :columns].to(torch.float8_e4m3fn)
        tensors[key], tensors[f"{key}_scale_inv"] = codes.contiguous(), scales.contiguous()
    for path in copy.glob("model*"):
        path.unlink()
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [HEIGHT, WIDTH]}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


@pytest.mark.parametrize("output_dtype", ["same", "bf16"])
@pytest.mark.parametrize("block", [1 << 20, 1 << 10])
def test_quantised_stacks(
    output_dtype: str, block: int, pair: tuple[str, Path, Path], quantised: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole experts in a slab, and few rows of one."""
    monkeypatch.setattr("merge.planner.MIB", block)
    merge.merge(quantised, pair[2], tmp_path / "out", output_dtype=output_dtype, rounding="nearest")
    before, merged = reference.weights(quantised), reference.weights(tmp_path / "out")
    for key, (delta, size) in experts(*pair).items():
        exact = before[key].double() * _factors(before[f"{key}_scale_inv"], before[key].shape)
        slack = size + reference.UNIT * 3 * (exact.abs() + delta.abs())
        if output_dtype == "bf16":
            low, high = ((exact + delta + side * slack).to(torch.bfloat16) for side in (-1, 1))
            found = merged[key]
        else:
            factors = _factors(merged[f"{key}_scale_inv"], before[key].shape)
            low, high = (
                ((exact + delta + side * slack) / factors * (1 + side * reference.UNIT))
                .clamp(-448, 448)
                .float()
                .to(torch.float8_e4m3fn)
                .double()
                for side in (-1, 1)
            )
            low, high, found = torch.minimum(low, high), torch.maximum(low, high), merged[key].double()
        assert bool(((low <= found) & (found <= high)).all()), key
    text = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    assert ("quantization_config" in text) == (output_dtype == "same")
    assert any(key.endswith("_scale_inv") for key in merged) == (output_dtype == "same")


def _factors(scales: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return scales.double().repeat_interleave(HEIGHT, 1)[:, : shape[1]].repeat_interleave(WIDTH, 2)[:, :, : shape[2]]
