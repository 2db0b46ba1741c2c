"""One cell per feature of the whole table, merged by the engine: certified; and with a feature's faults planted in it: rejected."""

from pathlib import Path

import pytest

from certify.verdict import Verdict
from exam.universe import made, missed

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
