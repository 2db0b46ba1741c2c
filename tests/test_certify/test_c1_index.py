"""C1 of what an index states besides: transformers loads every tensor in its dtype where config.json states none."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from certify.checks.c1_files import index_file
from certify.files import Files
from certify.finding import Outcome
from certify.inputs.checkpoint import INDEX, open_checkpoint
from exam.faults.side import edit
from merge.proxies import make_checkpoint


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
    finding = index_file(INDEX, open_checkpoint(out))
    assert finding.outcome is Outcome(outcome)
    assert ("metadata states the dtype" in finding.sentence) == (outcome == "failed")


@pytest.mark.parametrize(("stated", "outcome"), [("tf", "failed"), ("mlx", "failed"), ("pt", "passed"), (None, "passed")])
def test_the_format_of_a_file_is_one_of_the_bases(base: Path, tmp_path: Path, stated: str | None, outcome: str) -> None:
    """Version 4 of transformers takes it for weights of another framework."""
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
