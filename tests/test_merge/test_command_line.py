"""What the commands print, and how processes end."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from merge.__main__ import app


@pytest.fixture
def places(llama: SimpleNamespace, tmp_path: Path) -> list[str]:
    return [f"--base={llama.base}", f"--adapter={llama.adapter}", f"--out={tmp_path / 'out'}"]


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_run_ends_with_the_command_that_has_it_judged(places: list[str], tmp_path: Path) -> None:
    text = invoke("run", *places)
    assert "Merged." in text
    assert "42 of 42 adapter tensors consumed" in text
    assert "lora-certify run" in text
    assert "--criterion=nearest" in text
    assert f"{tmp_path / 'out'}" in text
    assert "already, finished. Nothing was written." in invoke("run", *places)


def test_json_is_one_object(places: list[str], tmp_path: Path) -> None:
    data = json.loads(invoke("run", *places, "--json"))
    assert data["tensors"]["merged"] == 21
    assert data["adapter_tensors"] == 42
    assert data["run"]["bytes"] == sum(_data_bytes(path) for path in (tmp_path / "out").glob("*.safetensors"))
    assert json.loads(invoke("status", f"--out={tmp_path / 'out'}", "--json"))["state"] == "finished"


def _data_bytes(shard: Path) -> int:
    raw = shard.read_bytes()
    return len(raw) - 8 - int.from_bytes(raw[:8], "little")


def test_plan_writes_nothing_and_foretells_the_disk(places: list[str], tmp_path: Path) -> None:
    data = json.loads(invoke("plan", *places, "--json"))
    assert not (tmp_path / "out").exists()
    invoke("run", *places, "--quiet")
    written = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert sum(shard["size"] for shard in data["shards"]) == sum(size for name, size in written.items() if name.endswith(".safetensors"))
    manifest = json.loads((tmp_path / "out" / "merge-manifest.json").read_text())
    assert manifest["plan"] == data["digest"]
    beside = {"model.safetensors.index.json", "merge-manifest.json", "merge-run.jsonl"}
    assert set(written) == {*manifest["shards"], *manifest["side_files"], *beside}


def test_quiet_prints_nothing(places: list[str]) -> None:
    assert invoke("run", *places, "--quiet") == ""


def test_modes_are_ordinary_and_the_figures_are_kept(places: list[str], tmp_path: Path) -> None:
    invoke("run", *places, "--quiet")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir() if path.name != "merge-run.jsonl"} == {0o644}
    last = json.loads((tmp_path / "out" / "merge-run.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "end"
    assert last["peak_rss"] > 0


def test_a_process_refuses_with_a_sentence_and_loads_neither_peft_nor_a_compiler(places: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "merge", "run", *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")}
    assert "torch" in modules
    assert not {name for name in modules if name.split(".")[0] in ("peft", "sympy")}
    assert "torch._dynamo.symbolic_convert" not in modules
    (tmp_path / "out" / "config.json").unlink()
    (tmp_path / "out" / "merge-manifest.json").unlink()
    refused = subprocess.run([sys.executable, "-m", "merge", "run", *places], capture_output=True, text=True, check=False)
    assert refused.returncode == 3
    assert refused.stderr.startswith("OutputError: ")
    assert refused.stderr.rstrip().endswith("Nothing was written.")
    assert "Traceback" not in refused.stderr


def test_the_card_names_base_and_adapter_and_keeps_the_bases_own(places: list[str], tmp_path: Path) -> None:
    invoke("run", *places, "--quiet")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith('---\nbase_model: "base"\nbase_model_relation: merge\nlicense: mit\n---\n')
    assert "`peft`" in card
    assert "Random weights in the real structure" in card


def test_a_hub_cache_is_called_by_its_name(llama: SimpleNamespace, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--deepseek-ai--DeepSeek-V3" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for path in llama.base.iterdir():
        (snapshot / path.name).symlink_to(path)
    invoke("run", f"--base={snapshot}", f"--adapter={llama.adapter}", f"--out={tmp_path / 'out'}", "--quiet")
    assert 'base_model: "deepseek-ai/DeepSeek-V3"' in (tmp_path / "out" / "README.md").read_text()
    assert not [path for path in (tmp_path / "out").iterdir() if path.is_symlink()]
