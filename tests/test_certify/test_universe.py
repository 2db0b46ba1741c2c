"""One cell per feature of the whole table, merged by the engine: certified; and with a feature's faults planted in it: rejected.

And two families at the level of layers: experts that lie transposed on disk, and a convolution beside experts.
"""

import json
from pathlib import Path

import pytest
import torch

import certify
from certify.finding import Finding, Outcome
from certify.verdict import Certificate, Verdict
from exam.universe import made, missed
from exam.universe_faults import planted
from tests import reference
from tests.matrix import trial
from tests.matrix.families import FAMILIES

TIED = ("embedding", "embedding_and_head", "tied_alike", "resized", "saved_embedding", "head_of_task", "token_rows", "replicated_layers")
CELLS = (
    *(("llama_tied", feature) for feature in (*TIED, "some_layers", "dora")),
    *(("gpt2", feature) for feature in ("dora", "bias_all", "embedding_dora")),
    *(("qwen2", feature) for feature in ("bias_lora_only", "lora_bias", "two_adapters", "modules_to_save")),
    ("qwen3_moe", "experts"), ("qwen2_moe", "disk_names"), ("gpt_oss", "experts_alone"), ("qwen3_vl_moe", "experts"),
    ("siglip_vision", "attention_module"), ("siglip_vision", "convolution"), ("siglip_vision", "convolution_dora"),
)  # fmt: skip


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("universe")


@pytest.mark.parametrize(("family", "feature"), CELLS)
def test_a_right_merge_is_certified_and_a_fault_is_not(room: Path, family: str, feature: str) -> None:
    cell = made(family, feature, room)
    certificate = cell.judged("modules")
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason
    seen = {fault: found.verdict for fault, found in missed(cell)}
    assert len(seen) >= 2
    assert set(seen.values()) == {Verdict.REJECTED}, seen


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5_moe"])
def test_layers_are_run_and_a_fault_fails_in_its_own(room: Path, family: str) -> None:
    cell = made(family, "lora", room)
    certificate = cell.judged("layers")
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason
    adapted = {subject: finding for subject, finding in _of_layers(certificate).items() if "K" in finding.figures}
    assert len(adapted) == 2
    for finding in adapted.values():
        assert finding.outcome is Outcome.PASSED
        assert finding.figures["experts"] == 4
    spoiled = cell.merged.with_name("fault")
    fault = next(planted("lora", cell.base, cell.merged, cell.adapters, spoiled))
    found = _of_layers(cell.judged("layers", spoiled))
    assert [subject for subject, finding in found.items() if finding.outcome is Outcome.FAILED] == [min(adapted)], fault


def test_peft_adds_the_delta_of_an_attention_twice_each_time_in_another_dtype(room: Path, tmp_path: Path) -> None:
    """In bf16: the first time rounded to the base's dtype, the second time in the adapter's."""
    base = _halved(trial.make_base("siglip_vision", room), tmp_path / "base")
    model = trial.load(base).to(torch.bfloat16)
    live = trial.trained(model, {"target_modules": ["head.attention"]}, FAMILIES["siglip_vision"])
    with trial.quiet():
        live.save_pretrained(tmp_path / "adapter")
        live.merge_and_unload().save_pretrained(tmp_path / "merged")
    verdicts = {
        criterion: certify.judge(base, [tmp_path / "adapter"], tmp_path / "merged", criterion=criterion, level="weights").verdict
        for criterion in ("peft", "nearest")
    }
    assert verdicts == {"peft": Verdict.CERTIFIED, "nearest": Verdict.REJECTED}


def _halved(base: Path, out: Path) -> Path:
    reference.saved_like(base, {name: value.to(torch.bfloat16) for name, value in reference.weights(base).items()}, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    return out


def _of_layers(certificate: Certificate) -> dict[str, Finding]:
    return {finding.subject: finding for finding in certificate.findings if finding.code == "C9"}
