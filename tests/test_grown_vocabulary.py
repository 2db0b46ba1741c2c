"""Vocabularies that grew before the training: as PEFT saves them, merged to what it runs; the gate agrees."""

from pathlib import Path

import peft
import pytest
import torch

import certify
import merge
from certify.verdict import Verdict
from tests.matrix import trial
from tests.test_odd_adapters import Options, far, made


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


ROWS = [96, 97, 99]
GROWN: dict[str, Options] = {
    "rows": {"trainable_token_indices": ROWS},
    "rows by name": {"trainable_token_indices": {"embed_tokens": ROWS}},
    "saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "saved in part": {"modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("model", ["llama", "tied"])
@pytest.mark.parametrize("case", GROWN)
def test_words_that_were_added(case: str, model: str, room: Path, tmp_path: Path) -> None:
    """PEFT saves the grown embedding besides what was trained of it, and once more for a head that shares it."""
    base = made(model, room)
    with trial.quiet(), torch.no_grad():
        torch.manual_seed(9)
        grown = trial.load(base)
        grown.resize_token_embeddings(104, mean_resizing=False)
        grown.config._name_or_path = str(base)
        live = peft.get_peft_model(grown, peft.LoraConfig(r=4, target_modules=["q_proj"], **GROWN[case])).eval()
        for value in live.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape) * 0.1)
        live.save_pretrained(tmp_path / "adapter")
    merge.merge(base, tmp_path / "adapter", tmp_path / "merged", workers=1)
    assert far(live, tmp_path / "merged", {"input_ids": torch.tensor([[3, 97, 4, 99, 96]])}) <= trial.LOGITS
    certificate = certify.judge(base, tmp_path / "adapter", tmp_path / "merged", level="weights")
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason
