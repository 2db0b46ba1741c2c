"""Quantised checkpoints, merged: every element against code × scale + Δ in float64, everything else byte for byte."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import merge
from merge.proxies import make_adapter, make_checkpoint
from tests import reference

FAMILIES = (
    *("deepseek-v3-fp8", "deepseek-v3-fp8-ragged", "deepseek-v3-fp8-ue8m0", "deepseek-v3-fp8-e8m0", "deepseek-v3-fp8-apart"),
    *("llama-fp8-channel", "llama-fp8-tensor"),
)
OVERFLOW = 464.0  # × scale: beyond it the nearest e4m3 number would be 480, which there is not
SCALES = ("_scale_inv", "_scale")


@dataclass(frozen=True)
class Case:
    """One quantised base with what must come of it: W + Δ in float64, and how far float32 may lie from it."""

    family: str
    base: Path
    adapter: Path
    exact: dict[str, torch.Tensor]
    slack: dict[str, torch.Tensor]
    touched: frozenset[str]
    stored: dict[str, torch.Tensor]

    def blocks(self, name: str) -> tuple[int, int]:
        """(height, width) of what shares a scale, by the configuration."""
        settings = json.loads((self.base / "config.json").read_text())["quantization_config"]
        rows, columns = self.stored[name].shape
        if settings["quant_method"] == "fp8":
            return tuple(settings["weight_block_size"])
        strategy = settings["config_groups"]["group_0"]["weights"]["strategy"]
        return (1, columns) if strategy == "channel" else (rows, columns)

    def factors(self, name: str, scales: torch.Tensor) -> torch.Tensor:
        """The scale of every element, float64."""
        (rows, columns), (height, width) = self.stored[name].shape, self.blocks(name)
        grid = scales.double().view(-(-rows // height), -(-columns // width))
        return grid.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]


def scale_of(name: str, tensors: dict[str, torch.Tensor]) -> str | None:
    return next((name + end for end in SCALES if name + end in tensors), None)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return build(request.param, tmp_path_factory.mktemp(request.param))


def build(family: str, room: Path, *, weight: float = 1.0) -> Case:
    base = make_checkpoint(family, room / "base")
    adapter = make_adapter(base, room / "adapter")
    stored, deltas = reference.weights(base), reference.adapter_deltas(adapter)
    made = Case(family, base, adapter, {}, {}, frozenset(f"{module}.weight" for module in deltas), stored)
    for name, value in stored.items():
        scale = scale_of(name, stored)
        exact = value.double() * made.factors(name, stored[scale]) if scale else value.double()
        delta = weight * deltas.get(name.removesuffix(".weight"), torch.zeros(()))
        made.exact[name] = exact + delta
        made.slack[name] = reference.UNIT * (3 * exact.abs() + 3 * delta.abs()) + product_error(name, adapter, weight)
    return made


def product_error(name: str, adapter: Path, weight: float) -> torch.Tensor:
    """(rank + 3) · u · |scaling| · |B| |A|: what a float32 product of that length may lose (Higham 2002, §3.1)."""
    tensors = reference.load_file(adapter / "adapter_model.safetensors")
    module = f"base_model.model.{name.removesuffix('.weight')}"
    if f"{module}.lora_A.weight" not in tensors:
        return torch.zeros(())
    a, b = (tensors[f"{module}.lora_{which}.weight"].double().abs() for which in "AB")
    return (len(a) + 3) * reference.UNIT * 2 * abs(weight) * (b @ a)


def test_bf16_is_the_exact_sum_rounded_once(case: Case, tmp_path: Path) -> None:
    manifest = merge.merge(case.base, case.adapter, tmp_path / "out", output_dtype="bf16")
    merged = reference.weights(tmp_path / "out")
    gone = {name for name in case.stored if name.endswith((*SCALES, ".input_scale"))}
    assert merged.keys() == case.stored.keys() - gone
    for name, value in merged.items():
        before = case.stored[name]
        if before.dtype != torch.float8_e4m3fn and name not in case.touched:
            assert torch.equal(value, before), name
            continue
        assert value.dtype == torch.bfloat16
        low, high = ((case.exact[name] + side * case.slack[name]).to(torch.bfloat16) for side in (-1, 1))
        assert bool(((low <= value) & (value <= high)).all()), name
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == merged.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in merged.values())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert manifest.tensors["merged"] == len(case.touched)


def test_same_is_the_nearest_code_on_the_bases_own_scales(case: Case, tmp_path: Path) -> None:
    merge.merge(case.base, case.adapter, tmp_path / "out", output_dtype="same", rounding="nearest")
    _check_codes(case, tmp_path / "out")
    for path in case.base.iterdir():
        if path.suffix == ".json":
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("family", ["deepseek-v3-fp8-e8m0", "llama-fp8-channel"])
def test_scales_grow_with_a_delta_that_overflows_them(family: str, tmp_path: Path) -> None:
    case = build(family, tmp_path, weight=6.0)
    merge.merge(case.base, case.adapter, tmp_path / "out", output_dtype="same", weights=[6.0])
    assert _check_codes(case, tmp_path / "out") >= {1.0, 2.0}


def _check_codes(case: Case, out: Path) -> set[float]:
    """Every tensor of a same-format output; the factors by which scales grew."""
    merged, growths = reference.weights(out), set[float]()
    assert merged.keys() == case.stored.keys()
    assert {name: (value.dtype, value.shape) for name, value in merged.items()} == {
        name: (value.dtype, value.shape) for name, value in case.stored.items()
    }
    followers = {scale_of(name, case.stored) for name in case.touched}
    for name in case.stored.keys() - case.touched - followers:
        assert torch.equal(merged[name].view(torch.uint8), case.stored[name].view(torch.uint8)), name
    for name in case.touched:
        scale = scale_of(name, case.stored)
        assert scale, name
        growth = merged[scale].double() / case.stored[scale].double()
        growths |= set(growth.flatten().tolist())
        factors = case.factors(name, merged[scale])
        low, high = ((case.exact[name] + side * case.slack[name]) / factors for side in (-1, 1))
        units = merged[name].double()
        assert bool((_code(low, -1) <= units).all()), name
        assert bool((units <= _code(high, 1)).all()), name
        _check_growth(case, name, growth)
    return growths


def _code(units: torch.Tensor, side: int) -> torch.Tensor:
    """The e4m3 number of one end of an interval, with the float32 division's own error on its side."""
    return (units + side * reference.UNIT * units.abs()).clamp(-448, 448).float().to(torch.float8_e4m3fn).double()


def _check_growth(case: Case, name: str, growth: torch.Tensor) -> None:
    """Doubled as often as the block's amax needs, and not once more."""
    (height, width), (rows, columns) = case.blocks(name), case.stored[name].shape
    sizes = torch.nn.functional.pad(case.exact[name].abs(), (0, -columns % width, 0, -rows % height))
    slack = torch.nn.functional.pad(case.slack[name], (0, -columns % width, 0, -rows % height)).amax()
    amax = sizes.view(sizes.shape[0] // height, height, -1, width).amax((1, 3))
    scale = scale_of(name, case.stored)
    assert scale
    limit = OVERFLOW * case.stored[scale].double().view(amax.shape) * growth.view(amax.shape)
    assert bool((amax - slack <= limit).all()), name
    assert bool(((amax + slack > limit / 2) | (growth.view(amax.shape) == 1)).all()), name
    assert bool((growth.log2() == growth.log2().round()).all()), name


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return build("deepseek-v3-fp8", tmp_path_factory.mktemp("aligned"))


@pytest.mark.parametrize("output_dtype", ["same", "bf16"])
def test_transformers_loads_it_whole_and_it_behaves_as_base_and_adapter(output_dtype: str, aligned: Case, tmp_path: Path) -> None:
    """transformers decodes fp8 itself on a CPU, so that it is the reader of both sides; the adapter is applied by PEFT, unmerged."""
    merge.merge(aligned.base, aligned.adapter, tmp_path / "out", output_dtype=output_dtype)
    reports = [_report(folder) for folder in (aligned.base, tmp_path / "out")]
    assert not reports[1]["missing_keys"]
    scales = {key for key in reports[0]["unexpected_keys"] if key.endswith(SCALES)}
    assert set(reports[1]["unexpected_keys"]) == set(reports[0]["unexpected_keys"]) - (scales if output_dtype == "bf16" else set())
    unmerged, alone = reference.logits(aligned.base, aligned.adapter), reference.logits(aligned.base)
    far = reference.distance(reference.logits(tmp_path / "out"), unmerged), reference.distance(alone, unmerged)
    print(f"{output_dtype}: merged {far[0]:.1e}, base alone {far[1]:.1e} from base + unmerged adapter")  # noqa: T201
    assert far[0] < far[1] / {"same": 2, "bf16": 5}[output_dtype]


def _report(folder: Path) -> dict[str, Any]:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)[1]
