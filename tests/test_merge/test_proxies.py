"""The proxies have the real structure, are small, and are the same bytes for the same seed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from merge.errors import MergeError
from merge.proxies import make_adapter, make_checkpoint
from tests.reference import weights

MTP_EXTRAS = {"embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm", "shared_head.head"}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "deepseek"])
def test_a_proxy_is_small_and_loads_whole(family: str, request: pytest.FixtureRequest) -> None:
    base: Path = request.getfixturevalue(family).base
    assert sum(path.stat().st_size for path in base.iterdir()) < 20e6
    _, report = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert all(".layers.3." in key for key in report["unexpected_keys"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    assert tokenizer.decode(tokenizer("merge Δ").input_ids) == "merge Δ"


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


@pytest.mark.parametrize("style", ["peft", "colossalai"])
def test_the_same_seed_gives_the_same_bytes(style: str, tmp_path: Path) -> None:
    family = "llama" if style == "peft" else "deepseek-v3"
    made = []
    for run in ("a", "b"):
        base = make_checkpoint(family, tmp_path / run / "base", seed=3)
        adapter = make_adapter(base, tmp_path / run / "adapter", style=style, steps=3, seed=3)
        made.append({path.relative_to(tmp_path / run): path.read_bytes() for path in (tmp_path / run).rglob("*") if path.is_file()})
        assert adapter.is_dir()
    assert made[0].keys() == made[1].keys()
    assert [name for name in made[0] if made[0][name] != made[1][name]] == []


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
