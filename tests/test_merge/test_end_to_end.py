"""The main job: base and adapter in, a checkpoint out that is what it must be, by a reference that shares nothing with us."""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import merge
from certify.judge import judge
from certify.verdict import Verdict
from tests import reference

LOGITS = 1e-5  # relative; float32 sums of equal weights differ by less


def _module_keys(base: Path, adapter: Path) -> dict[str, str]:
    """Module path → disk key, by the families' plain rule: the path itself, with or without the body's prefix."""
    held = reference.weights(base)
    found = {}
    for module in reference.adapter_deltas(adapter):
        names = [f"{module}.weight", f"{module}.weight".removeprefix("transformer.")]
        found[module] = next(name for name in names if name in held)
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_merge_is_the_once_rounded_sum_and_everything_else_is_the_base(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pair = request.getfixturevalue(family)
    keys = _module_keys(pair.base, pair.adapter)
    expected = reference.merged(pair.base, pair.adapter, keys, transposed=family == "gpt2")
    manifest = merge.merge(pair.base, pair.adapter, tmp_path / "merged")
    got, base = reference.weights(tmp_path / "merged"), reference.weights(pair.base)

    assert manifest.tensors["merged"] == len(keys) == sum(not torch.equal(got[name], base[name]) for name in base)
    assert got.keys() == base.keys()
    for name in base.keys() - set(keys.values()):
        assert torch.equal(got[name].view(torch.uint8), base[name].view(torch.uint8)), name
    assert judge(pair.base, pair.adapter, tmp_path / "merged").verdict is Verdict.CERTIFIED

    _, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ours = reference.logits(tmp_path / "merged")
    once_rounded = reference.logits(reference.saved_like(pair.base, expected, tmp_path / "reference"))
    unmerged, alone = reference.logits(pair.base, pair.adapter), reference.logits(pair.base)
    far = {name: reference.distance(value, unmerged) for name, value in (("merged", ours), ("base", alone))}
    print(f"{family}: to the reference {reference.distance(ours, once_rounded):.1e}; to base + unmerged adapter {far}")  # noqa: T201
    assert reference.distance(ours, once_rounded) <= LOGITS
    assert far["merged"] < far["base"] / 5


@pytest.mark.parametrize(
    ("family", "key", "parameter"),
    [
        ("llama", "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.gate_proj.weight"),
        ("gpt2", "h.2.attn.c_proj.weight", "transformer.h.2.attn.c_proj.weight"),
    ],
)
def test_the_plain_rule_for_names_agrees_with_marking(
    family: str, key: str, parameter: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pair = request.getfixturevalue(family)
    assert reference.marked_parameter(pair.base, key, tmp_path) == parameter
    assert _module_keys(pair.base, pair.adapter)[parameter.removesuffix(".weight")] == key


@pytest.mark.parametrize("adapter", ["deep", "deep_experts"])
def test_the_giant_in_small_keeps_every_tensor(adapter: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pair = request.getfixturevalue(adapter)
    manifest = merge.merge(pair.base, pair.adapter, tmp_path / "merged")
    got, base = reference.weights(tmp_path / "merged"), reference.weights(pair.base)
    assert len(got) == 1579
    deltas = reference.adapter_deltas(pair.adapter)
    assert manifest.tensors["merged"] == len(deltas) == {"deep": 305, "deep_experts": 879}[adapter]
    for name, value in base.items():
        delta = deltas.get(name.removesuffix(".weight"))
        if delta is None:
            assert torch.equal(got[name].view(torch.uint8), value.view(torch.uint8)), name
        else:
            assert not torch.equal(got[name], value), name
    certificate = judge(pair.base, pair.adapter, tmp_path / "merged")
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason
    assert certificate.level == "layers"


class Heard(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """What transformers logs as a warning or worse; the other tests silence it."""
    logger, handler = logging.getLogger("transformers"), Heard()
    before = logger.level
    logger.setLevel(logging.WARNING)
    logger.addHandler(handler)
    yield handler.said
    logger.removeHandler(handler)
    logger.setLevel(before)


def test_why_we_exist(deep: Any, heard: list[str], tmp_path: Path) -> None:
    """The usual route drops the MTP layer of a 61-layer DeepSeek-V3 without a word; the gate names what is gone."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(deep.base, dtype=torch.bfloat16, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    peft.PeftModel.from_pretrained(model, deep.adapter).merge_and_unload().save_pretrained(tmp_path / "peft")
    lost = reference.weights(deep.base).keys() - reference.weights(tmp_path / "peft").keys()
    assert len(lost) == 32
    assert not [line for line in heard if "layers.61" in line]
    assert all(name.startswith("model.layers.61.") for name in lost)
    certificate = judge(deep.base, deep.adapter, tmp_path / "peft")
    assert certificate.verdict is Verdict.REJECTED
    assert "32" in certificate.reason
    assert "model.layers.61" in certificate.reason
    assert lost <= {finding.subject for finding in certificate.findings if finding.code == "C2"}


@pytest.fixture
def unsharded(llama: Any, tmp_path: Path) -> Path:
    """The same base in one file."""
    return reference.saved_like(llama.base, reference.weights(llama.base), tmp_path / "one-file")


def test_one_file_or_many_is_the_same_merge(llama: Any, unsharded: Path, tmp_path: Path) -> None:
    merge.merge(unsharded, llama.adapter, tmp_path / "one")
    merge.merge(llama.base, llama.adapter, tmp_path / "many")
    one, many = reference.weights(tmp_path / "one"), reference.weights(tmp_path / "many")
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert {path.name for path in (tmp_path / "one").glob("*.safetensors*")} == {"model.safetensors"}


Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], None]


def _with_rslora(_tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    config["use_rslora"] = True


def _without_prefix(tensors: dict[str, torch.Tensor], _config: dict[str, Any]) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("base_model.model.")] = tensors.pop(name)


def _headless(tensors: dict[str, torch.Tensor], _config: dict[str, Any]) -> None:
    """As if it had been trained on LlamaModel."""
    for name in list(tensors):
        tensors[name.replace("base_model.model.model.", "base_model.model.")] = tensors.pop(name)


def _with_a_head(tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    config["modules_to_save"] = ["lm_head"]
    tensors["base_model.model.lm_head.weight"] = torch.full((320, 128), 0.5, dtype=torch.bfloat16)


@pytest.mark.parametrize("change", [_with_rslora, _without_prefix, _headless, _with_a_head], ids=lambda change: change.__name__)
def test_other_adapters(change: Change, llama: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    tensors = load_file(llama.adapter / "adapter_model.safetensors")
    config = json.loads((llama.adapter / "adapter_config.json").read_text())
    change(tensors, config)
    save_file(tensors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    manifest = merge.merge(llama.base, adapter, tmp_path / "merged")
    got = reference.weights(tmp_path / "merged")
    replaced = int(change is _with_a_head)
    assert manifest.tensors == {"copied": 9 - replaced, "merged": 21, "replaced": replaced}
    name = "model.layers.1.self_attn.o_proj.weight"
    factor = 8**0.5 if change is _with_rslora else 1.0
    delta = reference.adapter_deltas(llama.adapter)[name.removesuffix(".weight")] * factor
    expected = (reference.weights(llama.base)[name].double() + delta).bfloat16()
    assert int((got[name] != expected).sum()) <= 2  # of 16,384: float32 sums that lie on the other side of a tie
    if change is _with_a_head:
        assert bool((got["lm_head.weight"] == 0.5).all())
    assert judge(llama.base, adapter, tmp_path / "merged").verdict is Verdict.CERTIFIED
