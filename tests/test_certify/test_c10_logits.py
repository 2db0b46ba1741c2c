"""C10: sound merges pass, a base passed off as merged fails while the noise of storage is below it, and is undecided under it."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor

from certify.checks.c10_logits import logits
from certify.expect.ledger import build_ledger
from certify.finding import Finding, Outcome
from certify.inputs.adapter import open_adapter
from certify.inputs.checkpoint import open_checkpoint
from certify.layers.forward import end_to_end
from certify.layers.inputs import arguments
from tests.test_certify.layer_cases import Case, make


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def asked(case: Case) -> Finding:
    base, adapter = open_checkpoint(case.base), open_adapter(case.adapter)
    return logits(base, open_checkpoint(case.merged), build_ledger(base, [adapter], [1.0]), [adapter], [1.0], "nearest")


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "qwen3_moe", "deepseek_v3"])
def test_a_sound_merge_passes(family: str, tmp_path: Path) -> None:
    case = make(family, 1e-1, tmp_path)
    case.write(case.sound())
    finding = asked(case)
    assert finding.outcome is Outcome.PASSED, finding.sentence
    assert finding.figures["kl_merged"] == finding.figures["kl_rounding"]
    assert float(finding.figures["top1_merged"] or 0) >= float(finding.figures["top1_base"] or 0)


@pytest.mark.parametrize(("rho", "outcome"), [(1e-1, Outcome.FAILED), (1e-4, Outcome.UNDECIDED)])
def test_a_base_passed_off_as_merged_never_passes(rho: float, outcome: Outcome, tmp_path: Path) -> None:
    case = make("llama", rho, tmp_path)
    case.write(case.held)
    assert asked(case).outcome is outcome


def test_a_model_without_a_head_is_not_interpreted(tmp_path: Path) -> None:
    case = make("llama", 1e-1, tmp_path)
    config = (case.base / "config.json").read_text().replace("LlamaForCausalLM", "LlamaModel")
    (case.base / "config.json").write_text(config)
    case.write(case.sound())
    finding = asked(case)
    assert (finding.outcome, finding.sentence) == (Outcome.NOT_INTERPRETED, "not run: the model has no head that predicts tokens")


def test_the_unmerged_model_is_the_one_that_peft_itself_loads(tmp_path: Path) -> None:
    """The whole chain of lazy parameters, injected layers and recomputed buffers against PeftModel, in float32."""
    import peft

    case = make("llama", 3e-1, tmp_path)
    base, adapter = open_checkpoint(case.base), open_adapter(case.adapter)
    (answer,), _ = end_to_end(base, base, build_ledger(base, [adapter], [1.0]), [adapter], [1.0], "nearest", [])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        whole = transformers.LlamaForCausalLM.from_pretrained(case.base, dtype=torch.float32)
        expected: Tensor = peft.PeftModel.from_pretrained(whole, case.adapter).eval()(**arguments(whole)).logits
    assert torch.equal(answer.passed_on.logits, expected)
