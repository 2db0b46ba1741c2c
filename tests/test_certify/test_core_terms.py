"""What the gate is told, and what it does not understand: claims, fields, patterns, names and questions without sense."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

import certify
from certify.finding import Outcome
from certify.inputs.checkpoint import INDEX
from certify.verdict import Verdict
from exam import cases
from exam.cases import Case, Shelf
from tests.test_certify.front_checkpoint import make


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("cases"))


def test_without_an_adapter_what_differs_cannot_be_judged(shelf: Shelf) -> None:
    case = shelf["llama"]
    certificate = certify.judge(case.base, None, case.merged)
    assert certificate.verdict is Verdict.INCOMPLETE
    assert certificate.exit_code == 10
    assert "no manifest" in certificate.reason


def manifest(case: Case, **changes: object) -> None:
    from certify.inputs.folder import folder_digest

    entry = {"path": os.path.relpath(case.adapter, case.merged), "digest": folder_digest(case.adapter), "weight": 1.0} | changes
    (case.merged / "merge-manifest.json").write_text(json.dumps({"format": "mergegate/merge-manifest/1", "adapters": [entry]}))


def test_the_manifest_may_say_where_the_adapter_lies(shelf: Shelf, tmp_path: Path) -> None:
    case = cases.copied(shelf["llama"], tmp_path)
    manifest(case)
    certificate = certify.judge(case.base, None, case.merged)
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason
    assert certificate.statement["predicate"]["adapters"][0]["claimed"] is True


@pytest.mark.parametrize("changes", [{"digest": "0" * 64}, {"path": "."}, {"path": "../nowhere"}, {"weight": 2.0}, {"path": 5}])
def test_a_claim_that_does_not_hold_is_not_used(shelf: Shelf, tmp_path: Path, changes: dict[str, object]) -> None:
    case = cases.copied(shelf["llama"], tmp_path)
    manifest(case, **changes)
    assert certify.judge(case.base, None, case.merged).verdict is Verdict.INCOMPLETE


@pytest.mark.parametrize(
    "changes",
    [
        {"use_qalora": True},
        {"some_new_field": 3},
        {"peft_type": "LOHA"},
        {"bias": "some"},
        {"init_lora_weights": "pissa"},
        {"use_rslora": "yes"},
        {"target_modules": None},
    ],
)
def test_a_field_that_is_not_understood_is_named(shelf: Shelf, tmp_path: Path, changes: dict[str, object]) -> None:
    case = cases.copied(shelf["llama"], tmp_path)
    path = case.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    certificate = certify.judge(case.base, case.adapter, case.merged)
    assert certificate.verdict is Verdict.INCOMPLETE, certificate.reason
    assert next(iter(changes)) in certificate.reason


@pytest.mark.parametrize(("changes", "told"), [({"use_dora": True}, "its magnitude vector is not in the file"),
                                                ({"lora_bias": True}, "its lora_B.bias is not in the file"),
                                                ({"target_modules": ["q_proj"]}, "PEFT would not apply this pair"),
                                                ({"exclude_modules": ["down_proj"]}, "PEFT would not apply this pair"),
                                                ({"modules_to_save": ["norm"]}, "its file holds no tensor for it"),
                                                ({"trainable_token_indices": [3]}, "its file holds no tensor for it"),
                                                ({"layers_to_transform": [1]}, "PEFT would not apply this pair")])  # fmt: skip
def test_file_and_configuration_must_say_the_same(shelf: Shelf, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    case = cases.copied(shelf["llama"], tmp_path)
    path = case.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    certificate = certify.judge(case.base, case.adapter, case.merged, level="weights")
    assert certificate.verdict is Verdict.REJECTED, certificate.reason
    assert told in certificate.reason


def test_peft_places_the_same_modules_with_the_same_scaling(shelf: Shelf) -> None:
    from certify.examination import Examination

    for name, modules in {"llama": 8, "qwen2": 6, "gpt2": 6, "deepseek-attention": 9}.items():
        case = shelf[name]
        ledger = Examination(certify.Request(case.base, case.merged, (case.adapter,))).ledger
        assert ledger.peft_modules == (modules,)
        assert ledger.complete


def test_a_scaling_that_peft_reads_differently_is_not_judged(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certify.expect.terms.Terms.scaling", lambda *_: 3.0)
    case = shelf["qwen2"]
    certificate = certify.judge(case.base, case.adapter, case.merged)
    assert certificate.verdict is Verdict.INCOMPLETE
    assert "PEFT reads the scaling 4" in certificate.reason


def test_another_tuner_is_not_interpreted_rather_than_rejected(shelf: Shelf, tmp_path: Path) -> None:
    import peft

    case = shelf["qwen2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(cases.model_of("qwen2"), peft.LoHaConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "loha")
    certificate = certify.judge(case.base, tmp_path / "loha", case.merged)
    assert certificate.verdict is Verdict.INCOMPLETE, certificate.reason
    assert "peft_type = 'LOHA'" in certificate.reason


def test_names_that_are_no_unicode_still_make_a_certificate(shelf: Shelf, tmp_path: Path) -> None:
    case = cases.copied(shelf["llama"], tmp_path)
    index = json.loads((case.merged / cases.INDEX).read_text())
    index["weight_map"]["bad \ud800 name"] = "model-\udfff.safetensors"
    (case.merged / cases.INDEX).write_text(json.dumps(index))
    certificate = certify.judge(case.base, case.adapter, case.merged)
    assert certificate.verdict is Verdict.REJECTED
    assert json.loads(certificate.to_json().encode()) == certificate.statement


def test_patterns_that_disagree_are_not_guessed(shelf: Shelf, tmp_path: Path) -> None:
    case = cases.copied(shelf["llama"], tmp_path)
    path = case.adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha_pattern": {"down_proj": 4, "layers.1.mlp.down_proj": 8}}))
    certificate = certify.judge(case.base, case.adapter, case.merged)
    assert certificate.verdict is Verdict.INCOMPLETE
    assert "disagree about model.layers.1.mlp.down_proj" in certificate.reason


def test_only_and_too_few_subjects_are_incomplete(shelf: Shelf) -> None:
    case = shelf["llama"]
    assert certify.judge(case.base, case.adapter, case.merged, only="*q_proj*").verdict is Verdict.INCOMPLETE


def test_two_adapters_with_weights(shelf: Shelf, tmp_path: Path) -> None:
    case, out = shelf["qwen2"], tmp_path / "merged"
    cases.merge_into(case, out, lambda W, A, B, s: (W.float() + 0.5 * s * (B @ A) + 2.0 * s * (B @ A)).to(W.dtype))
    both = [case.adapter, case.adapter]
    certificate = certify.judge(case.base, both, out, weights=[0.5, 2.0])
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason
    assert certify.judge(case.base, both, out).verdict is Verdict.REJECTED


def test_a_fault_of_the_gate_is_an_error_that_names_the_tensor(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr("certify.tensors.merged_tensor", broken)
    case = shelf["llama"]
    certificate = certify.judge(case.base, case.adapter, case.merged)
    assert certificate.verdict is Verdict.ERROR
    assert certificate.exit_code == 3
    assert "q_proj" in certificate.reason or "proj" in certificate.reason


@pytest.mark.parametrize(
    "options",
    [{"weights": [1.0, 2.0]}, {"criterion": "loose"}, {"output_dtype": "int4"}, {"level": "all"}, {"merged": Path("/nowhere")}],
)
def test_questions_without_sense_are_usage_errors(shelf: Shelf, options: dict[str, Any]) -> None:
    case = shelf["llama"]
    with pytest.raises(certify.UsageError) as refusal:
        certify.judge(case.base, case.adapter, **{"merged": case.merged} | options)
    assert refusal.value.exit_code == 4


def test_a_shard_cannot_hide_behind_the_label_of_an_input(tmp_path: Path) -> None:
    asked = make(tmp_path)
    index = json.loads((asked.merged / INDEX).read_text())
    for shard in sorted(set(index["weight_map"].values())):
        (asked.merged / shard).rename(asked.merged / f"base: {shard}")
    index["weight_map"] = {name: f"base: {shard}" for name, shard in index["weight_map"].items()}
    (asked.merged / INDEX).write_text(json.dumps(index))
    certificate = certify.judge(asked.base, asked.adapter, asked.merged, level="weights")
    assert certificate.verdict is Verdict.REJECTED
    assert {finding.code for finding in certificate.findings if finding.outcome is Outcome.FAILED} == {"C1"}
