"""--output-dtype converts what is stored in the main dtype, once, from float32; everything else is carried."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import merge
from merge.catalog import Tensor
from merge.planner import main_dtype


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        found |= load_file(shard)
    return found


@pytest.mark.parametrize(("option", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_every_tensor_of_the_main_dtype_is_converted(option: str, dtype: torch.dtype, llama: SimpleNamespace, tmp_path: Path) -> None:
    merge.merge(llama.base, llama.adapter, tmp_path / "out", output_dtype=option)
    base, merged = weights(llama.base), weights(tmp_path / "out")
    assert merged.keys() == base.keys()
    assert {tensor.dtype for tensor in merged.values()} == {dtype}
    norm = "model.norm.weight"
    assert torch.equal(merged[norm], base[norm].float().to(dtype))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in merged.values())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config.get("dtype") or config.get("torch_dtype")) == str(dtype).removeprefix("torch.")


def test_the_main_dtype_is_the_one_that_holds_most_elements() -> None:
    def tensor(dtype: str, elements: int) -> Tensor:
        return Tensor(f"{dtype}{elements}", dtype, (elements,), "x", 0, elements)

    assert main_dtype([tensor("BF16", 5), tensor("F32", 9), tensor("BF16", 6)]) == "BF16"
    assert main_dtype([tensor("F8_E4M3", 50), tensor("F32", 9)]) == "F32"
    assert main_dtype([]) == ""


def test_what_is_not_in_the_main_dtype_keeps_its_own(llama: SimpleNamespace, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    tensors = weights(llama.base)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_bytes((llama.base / "config.json").read_bytes())
    merge.merge(base, llama.adapter, tmp_path / "out", output_dtype="fp16")
    merged = weights(tmp_path / "out")
    assert merged["model.norm.weight"].dtype == torch.float32
    assert merged["lm_head.weight"].dtype == torch.float16
    assert not (tmp_path / "out" / "model.safetensors.index.json").exists()
