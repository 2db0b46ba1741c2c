"""C1 of what an index states besides: transformers loads every tensor in its dtype where config.json states none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import merge
from certify.files import Files
from certify.finding import Outcome
from certify.inputs.checkpoint import INDEX, open_checkpoint
from exam.faults.side import edit
from merge.proxies import make_adapter, make_checkpoint


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bfloat16 in two shards, and a configuration without a dtype."""
    base = tmp_path_factory.mktemp("index") / "base"
    make_checkpoint("llama", base)
    edit(base / "config.json", dtype=None, torch_dtype=None)
    return base


@pytest.mark.parametrize(("stated", "outcome"), [("float16", "failed"), ("torch.float32", "failed"), (7, "failed"), ("bfloat16", "passed")])
def test_the_dtype_of_an_index_is_that_of_its_tensors(base: Path, tmp_path: Path, stated: object, outcome: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(base, out)
    edit(out / INDEX, metadata={"dtype": stated})
    finding = Files(open_checkpoint(base), open_checkpoint(out), ()).examine(INDEX)
    assert finding.outcome is Outcome(outcome)
    assert ("metadata states the dtype" in finding.sentence) == (outcome == "failed")


@pytest.mark.parametrize("stated", ["bfloat16", "float32", "torch.float16"])
def test_the_bases_own_word_stands_where_the_tensors_have_several_dtypes(base: Path, tmp_path: Path, stated: str) -> None:
    """A router's bias in float32 beside bfloat16; and no word of the base's stands where another dtype was declared."""
    mixed, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(base, mixed)
    for shard in mixed.glob("*.safetensors"):
        save_file({k: v.float() if "layernorm" in k else v for k, v in load_file(shard).items()}, shard, metadata={"format": "pt"})
    edit(mixed / INDEX, metadata={"dtype": stated})
    shutil.copytree(mixed, out)
    sides = open_checkpoint(mixed), open_checkpoint(out)
    assert Files(*sides, ()).examine(INDEX).outcome is Outcome.PASSED
    edit(out / INDEX, metadata={"dtype": "float64"})
    assert Files(sides[0], open_checkpoint(out), ()).examine(INDEX).outcome is Outcome.FAILED
    declared = Files(*sides, (), "bf16").examine(INDEX).outcome
    assert declared is (Outcome.FAILED if "16" in stated and "b" not in stated else Outcome.PASSED)


@pytest.mark.parametrize(("output_dtype", "dtype"), [("same", "bfloat16"), ("fp32", "float32"), ("bf16", "bfloat16")])
def test_the_engine_states_the_dtype_that_it_writes(base: Path, tmp_path: Path, output_dtype: str, dtype: str) -> None:
    stating, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    shutil.copytree(base, stating)
    edit(stating / INDEX, metadata={"dtype": "bfloat16"})
    make_adapter(stating, adapter)
    merge.merge(stating, adapter, out, output_dtype=output_dtype)
    assert json.loads((out / INDEX).read_text())["metadata"]["dtype"] == dtype
    assert Files(open_checkpoint(stating), open_checkpoint(out), (), output_dtype).examine(INDEX).outcome is Outcome.PASSED


def test_an_index_of_codes_may_name_their_dtype(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    make_checkpoint("deepseek-v3-fp8", base)
    for stated in ("float8_e4m3fn", "float32", "bfloat16"):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(base, out)
        edit(out / INDEX, metadata={"dtype": stated})
        assert Files(open_checkpoint(base), open_checkpoint(out), ()).examine(INDEX).outcome is Outcome.PASSED


@pytest.mark.parametrize(("stated", "outcome"), [("tf", "failed"), ("mlx", "passed"), ("pt", "passed"), (None, "passed")])
def test_the_format_of_a_file_is_pytorchs_or_one_of_the_bases(base: Path, tmp_path: Path, stated: str | None, outcome: str) -> None:
    """Version 4 of transformers takes another one for weights of another framework; MLX's, which mlx_lm writes, it loads as PyTorch's."""
    out = tmp_path / "out"
    shutil.copytree(base, out)
    path = min(out.glob("*.safetensors"))
    save_file(load_file(path), path, metadata={"format": stated} if stated else None)
    assert Files(open_checkpoint(base), open_checkpoint(out), ()).examine(path.name).outcome is Outcome(outcome)
    assert Files(open_checkpoint(out), open_checkpoint(out), ()).examine(path.name).outcome is Outcome.PASSED


def test_a_file_in_a_folder_is_found_by_its_index_alone(base: Path, tmp_path: Path) -> None:
    """vLLM loads `*.safetensors` of the directory itself."""
    out = tmp_path / "out"
    shutil.copytree(base, out)
    name = min(path.name for path in out.glob("*.safetensors"))
    (out / "more").mkdir()
    (out / name).rename(out / "more" / name)
    index = json.loads((out / INDEX).read_text())
    index["weight_map"] = {key: f"more/{file}" if file == name else file for key, file in index["weight_map"].items()}
    (out / INDEX).write_text(json.dumps(index))
    finding = Files(open_checkpoint(base), open_checkpoint(out), ()).examine(f"more/{name}")
    assert "lies in a folder of its own" in finding.sentence
    assert Files(open_checkpoint(out), open_checkpoint(out), ()).examine(f"more/{name}").outcome is Outcome.PASSED


def test_transformers_obeys_it(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(base, out)
    edit(out / INDEX, metadata={"dtype": "float16"})
    loaded = [transformers.AutoModelForCausalLM.from_pretrained(side, dtype="auto").dtype for side in (base, out)]
    assert loaded == [torch.bfloat16, torch.float16]
