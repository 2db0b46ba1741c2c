"""Sound merges trip nothing, whoever made them; a looser criterion or a declared dtype lets through what it allows, and no more."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import certify
from certify.verdict import Verdict
from exam import cases
from exam.cases import Case, Merge, Shelf

NAMES = ("llama", "llama-rslora", "qwen2", "gpt2", "deepseek", "deepseek-attention", "mixtral")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("cases"))


@pytest.mark.parametrize("how", [cases.single, cases.double, cases.rank_chunks])
@pytest.mark.parametrize("name", NAMES)
def test_sound_merges_are_certified(shelf: Shelf, tmp_path: Path, name: str, how: Merge) -> None:
    case, out = shelf[name], tmp_path / "merged"
    cases.merge_into(case, out, how)
    certificate = certify.judge(case.base, case.adapter, out)
    assert (certificate.verdict, certificate.reason[:4]) == (Verdict.CERTIFIED, "all "), certificate.reason
    predicate = certificate.statement["predicate"]
    assert predicate["tensors"]["merged"] == len(case.deltas)
    assert predicate["tensors"]["replaced"] == len(case.replaced)
    assert predicate["adapters"][0]["tensors"] == predicate["adapters"][0]["consumed"] > 0
    assert json.loads(certificate.to_json()) == certificate.statement


def merge_with_peft(case: Case, out: Path, *, safe: bool) -> None:
    import peft
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(case.base, dtype=torch.bfloat16)
        merged = peft.PeftModel.from_pretrained(model, case.adapter).merge_and_unload(safe_merge=safe)
        merged.save_pretrained(out, max_shard_size="20KB")


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_peft_default_is_one_rounding(shelf: Shelf, tmp_path: Path, name: str) -> None:
    case = shelf[name]
    merge_with_peft(case, tmp_path / "merged", safe=False)
    certificate = certify.judge(case.base, case.adapter, tmp_path / "merged")
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2"])
def test_peft_safe_merge_is_certified_under_its_own_criterion_only(shelf: Shelf, tmp_path: Path, name: str) -> None:
    case = shelf[name]
    merge_with_peft(case, tmp_path / "merged", safe=True)
    assert certify.judge(case.base, case.adapter, tmp_path / "merged", criterion="peft").verdict is Verdict.CERTIFIED
    strict = certify.judge(case.base, case.adapter, tmp_path / "merged")
    assert strict.verdict is Verdict.REJECTED
    assert "would pass under --criterion peft" in strict.reason


def test_peft_loses_the_mtp_layer_and_the_reason_names_it(shelf: Shelf, tmp_path: Path) -> None:
    case = shelf["deepseek-attention"]
    merge_with_peft(case, tmp_path / "merged", safe=False)
    certificate = certify.judge(case.base, case.adapter, tmp_path / "merged")
    lost = sum("layers.3." in key for key in cases.keys(case.base))
    assert certificate.verdict is Verdict.REJECTED
    assert certificate.reason.startswith(f"{lost} tensors of the base are missing: model.layers.3.* ×{lost}")
    assert certificate.statement["predicate"]["tensors"]["missing"] == lost


@pytest.mark.parametrize("criterion", ["peft", "faithful"])
def test_looser_criteria_still_see_faults(shelf: Shelf, tmp_path: Path, criterion: str) -> None:
    case, out = shelf["deepseek"], tmp_path / "merged"
    assert certify.judge(case.base, case.adapter, case.merged, criterion=criterion).verdict is Verdict.CERTIFIED
    cases.merge_into(case, out, lambda W, A, B, s: cases.single(W, A, B, 2 * s))
    assert certify.judge(case.base, case.adapter, out, criterion=criterion).verdict is Verdict.REJECTED


@pytest.mark.parametrize(("declared", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_a_declared_dtype_is_one_rounding_and_spares_other_dtypes(shelf: Shelf, tmp_path: Path, declared: str, dtype: torch.dtype) -> None:
    case, out = shelf["deepseek"], tmp_path / "merged"

    def convert(W: torch.Tensor, A: torch.Tensor, B: torch.Tensor, s: float) -> torch.Tensor:
        return (W.float() + s * (B.float() @ A.float())).to(dtype)

    cases.merge_into(case, out, convert)
    cases.edit(out, lambda key, tensor: tensor.to(dtype) if tensor.dtype == torch.bfloat16 and key not in case.deltas else tensor)
    configuration = out / "config.json"
    configuration.write_text(json.dumps(json.loads(configuration.read_text()) | {"dtype": str(dtype).removeprefix("torch.")}))
    certificate = certify.judge(case.base, case.adapter, out, output_dtype=declared)
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason
    assert certify.judge(case.base, case.adapter, out).verdict is Verdict.REJECTED
