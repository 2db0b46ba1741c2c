"""What is quantised in a way that is not merged, or damaged, or not decided, is refused by name while nothing is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import merge
from merge.__main__ import app
from merge.errors import MergeError, UndecidedError
from merge.proxies import make_adapter, make_checkpoint
from tests import reference

FOREIGN: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"quantised by bitsandbytes.*that it was made from.*QLoRA"),
    "old bitsandbytes": ({"load_in_8bit": True}, "quantised by bitsandbytes"),
    "gptq": ({"quant_method": "gptq", "bits": 4}, "quantised by gptq.*merge into the checkpoint that it was made from"),
    "awq": ({"quant_method": "awq", "bits": 4}, "quantised by awq.*merge into the checkpoint that it was made from"),
    "mxfp4": ({"quant_method": "mxfp4"}, "quantised by mxfp4.*bf16 release"),
    "int4": ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "quantised by pack-quantized.*INT4.*bf16 release"),
    "unheard of": ({"quant_method": "quux"}, "quantised by quux.*not known"),
    "e5m2": ({"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]}, "fmt 'e5m2'"),
    "a block size that is none": ({"quant_method": "fp8", "weight_block_size": [128, 0]}, r"weight_block_size \[128, 0\]"),
    "int8 channels": (
        {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {"a": {"weights": {"num_bits": 8, "type": "int"}}},
        },
        "not merged by this version",
    ),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    room = tmp_path_factory.mktemp("fp8")
    base = make_checkpoint("deepseek-v3-fp8", room / "base", layers=1)
    return base, make_adapter(base, room / "adapter")


def configured(base: Path, room: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the base with another config.json."""
    copy = shutil.copytree(base, room / "copy")
    config = json.loads((copy / "config.json").read_text())
    change(config)
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def rewritten(base: Path, room: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """A copy of the base with other tensors, all in one file."""
    copy = shutil.copytree(base, room / "copy", ignore=shutil.ignore_patterns("model*"))
    tensors = reference.weights(base)
    change(tensors)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("level", ["top", "text_config"])
def test_another_quantisation_is_refused_by_name(name: str, level: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    settings, message = FOREIGN[name]

    def change(config: dict[str, Any]) -> None:
        del config["quantization_config"]
        (config if level == "top" else config.setdefault(level, {}))["quantization_config"] = settings

    base = configured(pair[0], tmp_path, change)
    with pytest.raises(MergeError, match=f"(?s){message}.*Nothing was written") as refusal:
        merge.merge(base, pair[1], tmp_path / "out", output_dtype="bf16")
    assert refusal.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_scales_of_other_blocks_than_declared_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base = configured(pair[0], tmp_path, lambda config: config["quantization_config"].update(weight_block_size=[64, 64]))
    with pytest.raises(MergeError, match=r"(?s)scales do not fit their weights.*blocks of 64 × 64.*Nothing was written"):
        merge.merge(base, pair[1], tmp_path / "out", output_dtype="same")


def test_two_quantisations_are_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base = configured(pair[0], tmp_path, lambda config: config.update(text_config={"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(MergeError, match="2 quantisations that differ"):
        merge.merge(base, pair[1], tmp_path / "out", output_dtype="bf16")


def test_codes_without_a_quantisation_are_never_merged_into(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base = configured(pair[0], tmp_path, lambda config: config.pop("quantization_config"))
    with pytest.raises(MergeError, match=r"stored as F8_E4M3 without a scale that config\.json speaks of"):
        merge.merge(base, pair[1], tmp_path / "out")


@pytest.mark.parametrize("touched", [True, False])
def test_a_scale_that_is_missing_is_missed(touched: bool, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a weight that nothing is merged into it matters only where everything is decoded."""
    name = f"model.layers.{0 if touched else 1}.self_attn.o_proj.weight"
    base = rewritten(pair[0], tmp_path, lambda tensors: tensors.pop(f"{name}_scale_inv"))
    with pytest.raises(MergeError, match=rf"(?s){name}.*Nothing was written"):
        merge.merge(base, pair[1], tmp_path / "out", output_dtype="bf16")
    if touched:
        with pytest.raises(MergeError, match=f"{name}.*without a scale"):
            merge.merge(base, pair[1], tmp_path / "out", output_dtype="same")
    else:
        merge.merge(base, pair[1], tmp_path / "out", output_dtype="same")
        assert torch.equal(
            load_file(tmp_path / "out" / "model.safetensors")[name].view(torch.uint8), reference.weights(base)[name].view(torch.uint8)
        )


def test_what_speaks_of_a_quantisation_goes_with_it_and_nothing_else_does(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A side file of a quantiser; a parameter that is called a scale and is none of a quantiser's."""
    base = rewritten(pair[0], tmp_path, lambda tensors: tensors.update({"model.layers.1.logit_scale": torch.ones(3)}))
    (base / "hf_quant_config.json").write_text("{}")
    found = merge.merge(base, pair[1], tmp_path / "bf16", output_dtype="bf16")
    assert found.stale == ("hf_quant_config.json",)
    assert not (tmp_path / "bf16" / "hf_quant_config.json").exists()
    assert torch.equal(load_file(tmp_path / "bf16" / "model.safetensors")["model.layers.1.logit_scale"], torch.ones(3))
    merge.merge(base, pair[1], tmp_path / "same", output_dtype="same")
    assert (tmp_path / "same" / "hf_quant_config.json").exists()


def test_a_scale_without_its_weight_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base = rewritten(pair[0], tmp_path, lambda tensors: tensors.pop("model.layers.1.self_attn.o_proj.weight"))
    with pytest.raises(MergeError, match=r"(?s)o_proj.*without its weight.*Nothing was written"):
        merge.merge(base, pair[1], tmp_path / "out", output_dtype="bf16")


def test_a_quantised_base_leaves_a_choice_that_is_never_made_in_silence(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UndecidedError) as refusal:
        merge.merge(*pair, tmp_path / "out")
    assert refusal.value.exit_code == 2
    text = str(refusal.value)
    sizes = [merge.plan(*pair, tmp_path / "out", output_dtype=dtype).size for dtype in ("same", "bf16")]
    told = [int(line.split("bytes")[0].split()[-1].replace(",", "")) for line in text.splitlines() if "--output-dtype" in line]
    assert [told[0] > sizes[0], told[1] > sizes[1]] == [True, True]
    assert told[1] - told[0] == pytest.approx(sizes[1] - sizes[0], abs=(pair[0] / "config.json").stat().st_size)  # which is written anew
    assert text.count("of the delta") == 2
    assert not (tmp_path / "out").exists()


def test_a_faint_delta_is_foretold_to_be_lost_in_codes_and_kept_in_bf16(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The forecast against what a merge then keeps: ⟨Δ', Δ⟩ / ⟨Δ, Δ⟩ over every merged weight."""
    arguments = ["--base", str(pair[0]), "--adapter", str(pair[1]), "--out", str(tmp_path / "out"), "--weight", "0.01"]
    foretold = {}
    for dtype in ("same", "bf16"):
        shown = CliRunner().invoke(app, ["plan", *arguments, "--output-dtype", dtype, "--json"])
        assert shown.exit_code == 0, shown.output
        foretold[dtype] = json.loads(shown.stdout)["retention"]
    merge.merge(*pair, tmp_path / "out", output_dtype="same", rounding="nearest", weights=[0.01])
    merged, base = reference.weights(tmp_path / "out"), reference.weights(pair[0])
    kept = whole = 0.0
    for module, delta in reference.adapter_deltas(pair[1]).items():
        name, scale = f"{module}.weight", f"{module}.weight_scale_inv"
        factors = base[scale].double().repeat_interleave(128, 0)[: len(delta)].repeat_interleave(128, 1)[:, : delta.shape[1]]
        assert torch.equal(merged[scale], base[scale])
        kept += float(((merged[name].double() - base[name].double()) * factors * delta * 0.01).sum())
        whole += float((delta * 0.01).square().sum())
    assert foretold["same"] == pytest.approx(kept / whole, abs=0.1)
    assert foretold["same"] < 0.5 < 0.95 < foretold["bf16"]


def test_the_codes_kept_are_not_touched_by_a_weight_of_zero(pair: tuple[Path, Path], tmp_path: Path) -> None:
    merge.merge(*pair, tmp_path / "out", output_dtype="same", weights=[0.0])
    base, merged = reference.weights(pair[0]), reference.weights(tmp_path / "out")
    assert all(torch.equal(merged[name].view(torch.uint8), value.view(torch.uint8)) for name, value in base.items())
