"""The proxies have the real structure, are small, and are the same bytes for the same seed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from merge.errors import MergeError
from merge.proxies import make_adapter, make_checkpoint
from tests.reference import adapter_deltas, weights

MTP_EXTRAS = {"embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head"}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "deepseek"])
def test_a_proxy_is_small_and_loads_whole(family: str, request: pytest.FixtureRequest) -> None:
    base: Path = request.getfixturevalue(family).base
    assert sum(path.stat().st_size for path in base.iterdir()) < 20e6
    assert {path.stat().st_mode & 0o777 for path in base.iterdir()} == {0o644}
    beside = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"}
    assert beside <= {path.name for path in base.iterdir()}
    _, report = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert all(".layers.3." in key for key in report["unexpected_keys"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    assert tokenizer.decode(tokenizer("merge Δ").input_ids) == "merge Δ"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "user: hello\nassistant:"


@pytest.mark.parametrize("layers", [1, 6, 7, 30])
def test_every_depth_is_small(layers: int, tmp_path: Path) -> None:
    base = make_checkpoint("deepseek-v3", tmp_path / "base", layers=layers)
    assert sum(path.stat().st_size for path in base.iterdir()) < 20e6
    assert f"model.layers.{layers}.eh_proj.weight" in weights(base)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "deepseek", "deep", "deep_experts"])
def test_every_delta_is_large_enough_to_be_seen(family: str, request: pytest.FixtureRequest) -> None:
    pair = request.getfixturevalue(family)
    held, deltas = weights(pair.base), adapter_deltas(pair.adapter)
    assert deltas
    for module, delta in deltas.items():
        weight = held.get(f"{module}.weight", held.get(f"{module}.weight".removeprefix("transformer.")))
        assert weight is not None, module
        assert delta.norm() >= 1e-2 * weight.double().norm(), module


def test_an_adapter_that_learnt_nothing_is_refused(llama: Any, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"‖Δ‖/‖W‖ is 0\.0e\+00.*Nothing was written"):
        make_adapter(llama.base, tmp_path / "adapter", steps=0)
    assert not list(tmp_path.iterdir())


def test_the_colossalai_style_is_as_colossalai_saves_it(deep_experts: Any) -> None:
    """A pickle with a pair for every gate, up and down of every dense, shared and routed expert; none in the MTP layer."""
    tensors = torch.load(deep_experts.adapter / "adapter_model.bin", weights_only=True)
    modules = [f"model.layers.{layer}.mlp" for layer in range(3)]
    modules += [
        f"model.layers.{layer}.mlp.{part}" for layer in range(3, 61) for part in ("shared_experts", *(f"experts.{e}" for e in range(4)))
    ]
    assert tensors.keys() == {
        f"base_model.model.{module}.{name}_proj.lora_{factor}.weight"
        for module in modules
        for name in ("gate", "up", "down")
        for factor in "AB"
    }
    config = json.loads((deep_experts.adapter / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 8, 16)


def test_deepseek_has_what_the_giant_has(deep: Any) -> None:
    tensors = weights(deep.base)
    assert len(tensors) == 1579
    assert sum(name.startswith("model.layers.61.") for name in tensors) == 32
    assert {name.removeprefix("model.layers.61.").removesuffix(".weight") for name in tensors} >= MTP_EXTRAS
    assert tensors["model.layers.5.mlp.gate.e_score_correction_bias"].dtype == torch.float32
    assert "model.layers.2.mlp.gate_proj.weight" in tensors
    assert "model.layers.3.mlp.experts.3.down_proj.weight" in tensors
    assert torch.equal(tensors["model.layers.61.shared_head.head.weight"], tensors["lm_head.weight"])
    assert {path.name for path in deep.base.glob("*.safetensors")} == {f"model-{n:05d}-of-000006.safetensors" for n in range(1, 7)}


def test_the_structures_differ(llama: Any, qwen2: Any, gpt2: Any) -> None:
    assert "lm_head.weight" in weights(llama.base)
    assert "lm_head.weight" not in weights(qwen2.base)
    assert "model.layers.0.self_attn.q_proj.bias" in weights(qwen2.base)
    found = weights(gpt2.base)
    assert found["h.0.attn.c_attn.weight"].shape == (96, 288)
    assert found["h.0.attn.c_proj.weight"].shape == (96, 96)
    assert found["h.0.attn.bias"].shape == (1, 1, 64, 64)


EVERYTHING = """
import sys, pathlib
from merge.proxies import make_adapter, make_checkpoint
for family in ("llama", "qwen2", "gpt2", "deepseek-v3"):
    room = pathlib.Path(sys.argv[1], family)
    base = make_checkpoint(family, room / "base", seed=3)
    make_adapter(base, room / "peft", seed=3)
make_adapter(base, room / "colossalai", style="colossalai", seed=3)
"""


def test_the_same_seed_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    """Two processes that differ in what bytes must not depend on: the order of sets, and the number of threads."""
    runs = {
        room: subprocess.Popen(
            [sys.executable, "-c", EVERYTHING, tmp_path / room],
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads},
            cwd=Path(__file__).parents[2],
        )
        for room, seed, threads in (("a", "1", "1"), ("b", "2", "2"))
    }
    assert [run.wait() for run in runs.values()] == [0, 0]
    a, b = ({path.relative_to(tmp_path / room): path for path in (tmp_path / room).rglob("*") if path.is_file()} for room in runs)
    assert a.keys() == b.keys()
    assert [name for name in a if a[name].read_bytes() != b[name].read_bytes()] == []


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    one, other = (weights(make_checkpoint("llama", tmp_path / str(seed), seed=seed)) for seed in (0, 1))
    assert all(not torch.equal(one[name], other[name]) for name in one)


REFUSED: dict[str, Callable[[Path, Path], Path]] = {
    "family": lambda _, room: make_checkpoint("bert", room / "out"),
    "style": lambda base, room: make_adapter(base, room / "out", style="dora"),
    "a base that is none": lambda _, room: make_adapter(room, room / "out"),
    "a full directory": lambda _, room: make_checkpoint("llama", room),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_what_cannot_be_made_is_refused(damage: str, llama: Any, tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(MergeError, match=r"Nothing was written"):
        REFUSED[damage](llama.base, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
