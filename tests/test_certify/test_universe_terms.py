"""What the table does not hold: names of older releases, layers behind the last one, unknown architectures, and the gate's own witness."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import certify
import merge
from certify.checks.c6_selfcheck import formula
from certify.errors import CertifyError
from certify.expect.terms import read_terms
from certify.expect.witness import hold_kinds
from certify.finding import Outcome
from certify.verdict import Verdict
from exam.universe import made
from tests.matrix import trial


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("universe")


def rewritten(folder: Path, changes: dict[str, Any], out: Path) -> Path:
    """A copy of an adapter or a checkpoint, with other fields in its configuration."""
    shutil.copytree(folder, out)
    path = next(path for path in (out / "adapter_config.json", out / "config.json") if path.exists())
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return out


def pair(folder: Path, module: str, rows: int, columns: int, targets: list[str]) -> Path:
    """An adapter with one pair of rank 4."""
    trial.write_disk_adapter(folder, {module: (rows, columns)}, targets)
    return folder


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "glm4_moe", "phimoe"])
def test_what_peft_loses_of_an_older_adapter_is_refused(room: Path, family: str) -> None:
    """PEFT 0.21 loads an adapter of single experts onto today's fused ones, loses part of it without a word, and merges the rest."""
    cell = made(family, "disk_names", room)
    assert cell.judged("weights").verdict is Verdict.CERTIFIED
    with trial.quiet():
        live = peft.PeftModel.from_pretrained(trial.load(cell.base), cell.adapters[0])
        live.merge_and_unload().save_pretrained(cell.merged.with_name("by-peft"))
    certificate = cell.judged("weights", cell.merged.with_name("by-peft"))
    assert certificate.verdict is Verdict.REJECTED, certificate.reason
    assert "merged tensors are wrong" in certificate.reason


def test_a_layer_that_predicts_further_tokens_has_its_place(room: Path, tmp_path: Path) -> None:
    """DeepSeek-V3's layer 61: on disk, in no module of today's transformers."""
    base = shutil.copytree(trial.make_base("deepseek_v3", room), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    more = {key.replace("layers.1.", "layers.2."): value.clone() for key, value in tensors.items() if ".layers.1." in key}
    save_file(tensors | more, base / "model.safetensors", metadata={"format": "pt"})
    module = "model.layers.2.mlp.experts.3.gate_proj"
    adapter = pair(tmp_path / "adapter", module, *more[f"{module}.weight"].shape, ["gate_proj"])
    merged = shutil.copytree(base, tmp_path / "merged")
    factors = load_file(adapter / "adapter_model.safetensors")
    delta = 2.0 * factors[f"base_model.model.{module}.lora_B.weight"] @ factors[f"base_model.model.{module}.lora_A.weight"]
    for factor, verdict in ((1.0, "all"), (0.0, "never merged")):
        wrong = {f"{module}.weight": more[f"{module}.weight"] + factor * delta}
        save_file(tensors | more | wrong, merged / "model.safetensors", metadata={"format": "pt"})
        certificate = certify.judge(base, adapter, merged, level="weights")
        about = [finding for finding in certificate.findings if finding.subject == f"{module}.weight" and finding.code == "C4"]
        assert [finding.outcome for finding in about] == [Outcome.PASSED if factor else Outcome.FAILED], certificate.reason
        assert verdict in certificate.reason or factor


def test_an_unknown_architecture_is_read_literally_and_says_so(room: Path, tmp_path: Path) -> None:
    cell = made("llama", "lora", room)
    base = rewritten(cell.base, {"model_type": "nobody", "architectures": ["NobodyForCausalLM"]}, tmp_path / "base")
    merge.merge(base, cell.adapters[0], tmp_path / "merged", workers=1)
    certificate = certify.judge(base, cell.adapters[0], tmp_path / "merged", level="modules")
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason
    assert "names are taken literally" in certificate.reason
    assert certify.judge(base, cell.adapters[0], tmp_path / "merged", level="layers").verdict is Verdict.INCOMPLETE
    assert certify.judge(base, cell.adapters[0], base, level="modules").verdict is Verdict.REJECTED


def test_square_experts_are_decided_by_the_version_alone(tmp_path: Path) -> None:
    """down_proj of these experts is square: PEFT before 0.19 took the other axis for the inputs, and its file looks the same."""
    base = tmp_path / "base"
    config = transformers.Qwen3MoeConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=8, tie_word_embeddings=False,
    )  # fmt: skip
    with trial.quiet():
        transformers.Qwen3MoeForCausalLM(config).save_pretrained(base)
        options = {"target_modules": [], "target_parameters": ["mlp.experts.down_proj"], "r": 4, "lora_alpha": 8}
        live = peft.get_peft_model(trial.load(base), peft.LoraConfig(**options, init_lora_weights=False))
        live.save_pretrained(tmp_path / "adapter")
    for version, number in (("0.21.2", 0), ("0.18.1", 1)):
        adapter = rewritten(tmp_path / "adapter", {"peft_version": version}, tmp_path / f"adapter-{version}")
        merge.merge(base, adapter, tmp_path / f"merged-{number}", workers=1)
        assert certify.judge(base, adapter, tmp_path / f"merged-{number}", level="weights").verdict is Verdict.CERTIFIED
    crossed = certify.judge(base, tmp_path / "adapter-0.21.2", tmp_path / "merged-1", level="weights")
    assert crossed.verdict is Verdict.REJECTED
    unsaid = rewritten(tmp_path / "adapter", {"peft_version": None}, tmp_path / "adapter-unsaid")
    assert "without peft_version" in certify.judge(base, unsaid, tmp_path / "merged-0", level="weights").reason


def test_a_pair_that_the_configuration_does_not_name_is_a_fault(room: Path, tmp_path: Path) -> None:
    cell = made("llama", "lora", room)
    adapter = rewritten(cell.adapters[0], {"target_modules": ["k_proj", "down_proj"]}, tmp_path / "adapter")
    certificate = certify.judge(cell.base, adapter, cell.merged, level="weights")
    assert certificate.verdict is Verdict.REJECTED
    assert "names model.layers.0.self_attn.q_proj: PEFT would not apply this pair" in certificate.reason


def test_peft_is_never_asked_about_what_is_not_interpreted(room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = made("llama", "lora", room)
    adapter = rewritten(cell.adapters[0], {"auto_mapping": {"base_model_class": "X"}, "peft_type": "XLORA"}, tmp_path / "adapter")

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("PEFT was asked")

    monkeypatch.setattr(peft.PeftConfig, "from_pretrained", asked)
    assert certify.judge(cell.base, adapter, cell.merged, level="weights").verdict is Verdict.INCOMPLETE


def test_a_thousand_patterns_are_compiled_once() -> None:
    terms = read_terms({"rank_pattern": {f"layers.{n}.q_proj": 8 for n in range(1000)}})
    began = time.monotonic()
    assert [terms.rank(f"model.layers.{n}.q_proj") for n in (0, 999)] == [8, 8]
    assert time.monotonic() - began < 0.1


def test_the_witness_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    hold_kinds()
    monkeypatch.setattr("certify.bounds.Gain.of", classmethod(lambda cls, m, squares, errors, _: cls(m / squares, errors)))
    with pytest.raises(CertifyError, match="DoRA, linear"):
        hold_kinds()
    formula.cache_clear()
    assert formula().outcome is Outcome.FAILED
    formula.cache_clear()


def test_dora_bound_holds_for_every_order_of_sums() -> None:
    """The derived interval holds a float32 merge whose norms are added up in the worst order, and not one with a factor of 1 + 1e-3."""
    from certify.bounds import Delta, Gain, bound, reach
    from certify.grid import Grid

    torch.manual_seed(0)
    W, left, right, m = torch.randn(16, 512), torch.randn(16, 4), torch.randn(4, 512), torch.rand(16) + 0.5
    delta = Delta(left, right, 0.5, torch.float32)
    v, e = reach(W, [delta.double()], "nearest")
    gain = Gain.of(m[:, None].double(), v.square().sum(1, keepdim=True), e.square().sum(1, keepdim=True), 512)
    allowed = bound(W, [delta], Grid(torch.float32), "nearest", gain)
    for order in (torch.arange(512), torch.arange(511, -1, -1), torch.randperm(512)):
        V, squares = W + 0.5 * (left @ right), torch.zeros(16)
        for column in order.tolist():
            squares = squares + V[:, column] ** 2
        merged = (m / squares.sqrt())[:, None] * V
        assert bool(allowed.holds(merged.double()).all())
        assert float(allowed.holds((merged * 1.001).double()).double().mean()) < 0.01  # all but the smallest numbers
