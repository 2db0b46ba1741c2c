"""C6: a gate that does not see, or that contradicts PEFT, says so, and never CERTIFIED."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import certify
from certify import launch
from certify.bounds import Delta
from certify.checks import c4_merged, c6_selfcheck
from certify.finding import Finding, Outcome
from certify.verdict import Verdict
from tests.test_certify.front_checkpoint import TOUCHED, Question, make


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Question:
    return make(tmp_path_factory.mktemp("sound"))


class Blind(c4_merged.Tally):
    """Accepts everything."""

    def judge(self, *_: object) -> None:
        return


def checks(question: Question, level: str = "weights") -> dict[str, object]:
    certificate = certify.judge(question.base, question.adapter, question.merged, level=level)
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason
    found = certificate.statement["predicate"]["self_check"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("level", ["weights", "modules"])
def test_every_run_is_armed(sound: Question, level: str) -> None:
    found = checks(sound, level)
    assert found == {"armed": 4, "planted": 4, "not_armable": [], "hypothesis_examples": c6_selfcheck.EXAMPLES}
    assert c6_selfcheck.EXAMPLES >= 300


def test_a_blind_gate_is_incomplete(sound: Question, monkeypatch: pytest.MonkeyPatch) -> None:
    c6_selfcheck.formula()
    monkeypatch.setattr(c4_merged, "Tally", Blind)
    certificate = certify.judge(sound.base, sound.adapter, sound.merged)
    assert certificate.verdict is Verdict.INCOMPLETE
    assert certificate.exit_code == 10
    assert f"C6 the gate does not see 4 of 4 planted faults: a missing delta in {TOUCHED}" in certificate.reason


def test_a_blind_gate_is_incomplete_under_pytest(sound: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c6_selfcheck.formula()
    monkeypatch.setattr(c4_merged, "Tally", Blind)
    assert int(pytest.main(launch.arguments([*sound.words, f"--report={tmp_path}"]))) == 10
    assert "armed 0/4" in (tmp_path / "index.html").read_text()


def test_a_blind_tally_contradicts_the_small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c4_merged, "Tally", Blind)
    c6_selfcheck.formula.cache_clear()
    found = c6_selfcheck.formula()
    c6_selfcheck.formula.cache_clear()
    assert found.outcome is Outcome.FAILED
    assert "accepts NaN" in found.sentence


def test_a_delta_below_the_grid_arms_nothing(tmp_path: Path) -> None:
    """Green would mean nothing: a merge that left the tensor out would look the same."""
    question = make(tmp_path)
    from safetensors.torch import load_file, save_file

    path = question.adapter / "adapter_model.safetensors"
    save_file({name: tensor * (1e-12 if "lora_B" in name else 1) for name, tensor in load_file(path).items()}, path)
    question = Question(question.base, question.adapter, question.base)
    certificate = certify.judge(question.base, question.adapter, question.merged, min_retention=0.0)
    assert certificate.verdict is Verdict.INCOMPLETE
    assert "no planted fault leaves the criterion's intervals" in certificate.reason
    assert len(certificate.statement["predicate"]["self_check"]["not_armable"]) == 4


def test_a_fault_that_rounding_hides_is_not_armable() -> None:
    W = torch.ones(4, 4).bfloat16()
    delta = Delta(torch.full((4, 1), 2.0**-4), torch.full((1, 4), 2.0**-4), 1.0, torch.float32)  # half a step of bf16 at 1: ties to even
    plants = dict(c6_selfcheck._faults(W, [delta], [delta], [0, 1, 2, 3]))
    assert list(plants) == ["a missing delta", "a delta × 0.95", "a transposed delta", "an unmerged tile"]
    assert all(isinstance(plant, Tensor) for plant in plants.values())
    assert torch.equal(plants["a transposed delta"], W.float() + delta.value())


def test_nothing_to_plant_in_is_no_fault() -> None:
    assert c6_selfcheck.power([], "nearest") == Finding(
        "C6", c6_selfcheck.POWER, Outcome.PASSED, figures={"armed": 0, "planted": 0, "not_armable": ""}
    )


def test_the_working_directory_stays_as_it_was(sound: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    c6_selfcheck.formula.cache_clear()
    assert certify.judge(sound.base, sound.adapter, sound.merged).verdict is Verdict.CERTIFIED
    assert not list(tmp_path.iterdir())
