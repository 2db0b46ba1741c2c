"""A quantised base: the gate does not decode it yet, so that a sound merge is INCOMPLETE, never refused, and a spoiled one is."""

from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import certify
import merge
from certify.verdict import Verdict
from merge.proxies.adapter import make_adapter
from merge.proxies.checkpoint import make_checkpoint


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fp8")
    make_checkpoint("deepseek-v3-fp8", root / "base")
    make_adapter(root / "base", root / "adapter")
    return root


@pytest.mark.parametrize("output_dtype", ["same", "bf16"])
def test_a_sound_merge_is_incomplete_and_a_spoiled_one_is_refused(fp8: Path, tmp_path: Path, output_dtype: str) -> None:
    out = tmp_path / "merged"
    merge.merge(fp8 / "base", fp8 / "adapter", out, output_dtype=output_dtype)
    found = certify.judge(fp8 / "base", [fp8 / "adapter"], out, output_dtype=output_dtype, criterion="faithful", level="weights")
    assert found.verdict is Verdict.INCOMPLETE, found.reason
    _spoil(out)
    found = certify.judge(fp8 / "base", [fp8 / "adapter"], out, output_dtype=output_dtype, criterion="faithful", level="weights")
    assert found.verdict is Verdict.REJECTED


def _spoil(out: Path) -> None:
    """One number of a norm that no adapter touches."""
    for shard in sorted(out.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            metadata = file.metadata()
        held = load_file(shard)
        key = next((name for name in held if name.endswith("input_layernorm.weight")), None)
        if key:
            held[key][0] += 1
            save_file({name: tensor.contiguous() for name, tensor in held.items()}, shard, metadata=metadata)
            return
    raise AssertionError("no norm was found")
