"""A stack of experts with a gap: the next expert must never stand in the place of the missing one, and nothing trips over it."""

import shutil
from pathlib import Path

import pytest

import certify
from certify.finding import Outcome
from certify.verdict import Certificate, Verdict
from exam import cases
from exam.cases import Case
from exam.families import FAMILIES, make_base

LAYER = "model.layers.1"
GAPS = {  # family → the start of one expert's names, and its last map
    "qwen3_moe": ("mlp.experts.2.", "down_proj"),
    "mixtral": ("block_sparse_moe.experts.2.", "w2"),
}


@pytest.fixture(scope="module", params=GAPS)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Case]:
    family: str = request.param
    root = tmp_path_factory.mktemp(family)
    case = Case(root / "base", root / "adapter", root / "merged")
    make_base(family, "bf16", case.base, "sharded")
    cases.colossal_adapter(case.base, case.adapter, FAMILIES[family].experts)
    cases.expected_deltas(case)
    cases.merge_into(case, case.merged)
    return family, case


def judged(sound: tuple[str, Case], root: Path, side: str, lost: str) -> tuple[Certificate, int]:
    """The certificate where one side lacks an expert, or one map of it, and how many tensors that is."""
    family, case = sound
    start, last = GAPS[family]
    spoiled = cases.copied(case, root)
    spoiled.base = Path(shutil.copytree(case.base, root / "base"))
    gone = f"{LAYER}.{start}{last if lost == 'map' else ''}"
    directory = {"base": spoiled.base, "merged": spoiled.merged}[side]
    before = len([*cases.keys(directory)])
    cases.edit(directory, lambda key, tensor: None if key.startswith(gone) else tensor)
    return certify.judge(spoiled.base, spoiled.adapter, spoiled.merged), before - len([*cases.keys(directory)])


@pytest.mark.parametrize("lost", ["expert", "map"])
def test_a_gap_in_the_merged_checkpoint_fails_in_its_layer(sound: tuple[str, Case], tmp_path: Path, lost: str) -> None:
    certificate, gone = judged(sound, tmp_path, "merged", lost)
    assert certificate.verdict is Verdict.REJECTED, certificate.reason
    failed = [finding for finding in certificate.findings if finding.outcome is Outcome.FAILED]
    assert sum(finding.code == "C2" for finding in failed) == gone == (3 if lost == "expert" else 1)
    (layer,) = [finding for finding in failed if finding.code == "C9"]
    assert layer.subject == LAYER
    assert f"{gone} of its " in layer.sentence
    assert "missing from the merged checkpoint" in layer.sentence


@pytest.mark.parametrize("lost", ["expert", "map"])
def test_a_gap_in_the_base_is_told_and_its_layer_not_run(sound: tuple[str, Case], tmp_path: Path, lost: str) -> None:
    certificate, gone = judged(sound, tmp_path, "base", lost)
    assert certificate.verdict is Verdict.REJECTED, certificate.reason
    failed = [finding for finding in certificate.findings if finding.outcome is Outcome.FAILED]
    assert sum(finding.code == "C2" for finding in failed) == gone
    told = [finding for finding in certificate.findings if finding.code == "C9" and finding.outcome is Outcome.NOT_INTERPRETED]
    assert any("a stack of 4 experts, of which the base holds" in finding.sentence for finding in told)
