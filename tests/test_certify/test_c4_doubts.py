"""What depends on the libraries that an adapter was trained with: the gate refuses no right merge for it, and says what it cannot know."""

from pathlib import Path

import pytest
import torch
import transformers as t

import certify
from certify.finding import Outcome
from certify.verdict import Verdict
from exam.faults.side import edit
from tests.matrix import trial
from tests.matrix.families import GROUPED, Family

MAMBA = {"vocab_size": 96, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 1, "time_step_rank": 4, "use_mambapy": False}
FAMILY = Family(lambda: None, ("x",), "x")


def test_a_time_step_that_a_quantised_model_calls(tmp_path: Path) -> None:
    """Mamba's dt_proj is called where the model is quantised: PEFT's merge of a QLoRA is right, and whether it is one nobody can tell."""
    base = trial.made(lambda: t.FalconMambaForCausalLM(t.FalconMambaConfig(**MAMBA)), tmp_path / "base")
    live = trial.trained(trial.load(base), {"target_modules": ["in_proj", "dt_proj"]}, FAMILY)
    with trial.quiet(), torch.no_grad():
        live.save_pretrained(tmp_path / "adapter")
        live.merge_and_unload().save_pretrained(tmp_path / "merged")
    certificate = certify.judge(base, tmp_path / "adapter", tmp_path / "merged", level="weights", criterion="peft")
    assert certificate.verdict is Verdict.INCOMPLETE, certificate.reason
    told = [finding for finding in certificate.findings if finding.outcome is not Outcome.PASSED]
    assert {finding.outcome for finding in told} == {Outcome.NOT_INTERPRETED}
    assert all("dt_proj" in finding.subject for finding in told)
    assert any("depends on transformers' version and on quantisation" in finding.sentence for finding in told)


@pytest.mark.parametrize("family", ["Gemma", "Gemma2"])
def test_a_lookup_that_version_4_did_not_multiply(family: str, tmp_path: Path) -> None:
    """Before PEFT 0.18: the model multiplied what the plain lookup gave it, the addend with it."""
    config = getattr(t, f"{family}Config")(**GROUPED, head_dim=8)
    base = trial.made(lambda: getattr(t, f"{family}ForCausalLM")(config), tmp_path / "base")
    live = trial.trained(trial.load(base), {"target_modules": ["embed_tokens"]}, FAMILY)
    with trial.quiet(), torch.no_grad():
        live.save_pretrained(tmp_path / "adapter")
        live.merge_and_unload().save_pretrained(tmp_path / "merged")
    edit(tmp_path / "adapter" / "adapter_config.json", peft_version="0.17.1")
    certificate = certify.judge(base, tmp_path / "adapter", tmp_path / "merged", level="weights", criterion="peft")
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason
    assert certify.judge(base, tmp_path / "adapter", base, level="weights").verdict is Verdict.REJECTED
