"""The gate raises no false alarm: one sound merge of every family and every feature. The full grid is `python -m exam.sound`."""

from pathlib import Path

import pytest
import torch

from exam import producers, sound
from exam.families import DTYPES, FAMILIES
from exam.sound import EXPERTS, FEATURES, LEAST, TWO, Shelf, Sound

SAMPLE = list(sound.sample())


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("made", SAMPLE, ids=str)
def test_a_sound_merge_is_certified(made: Sound, shelf: Shelf, tmp_path: Path) -> None:
    found = sound.judged(made, shelf, tmp_path / "out")
    assert not found.refused
    assert not found.alarm


def test_the_sample_has_every_family_feature_dtype_and_producer() -> None:
    found = sound.table(SAMPLE)
    assert found["family"].keys() == FAMILIES.keys()
    assert found["feature"].keys() == {*FEATURES, TWO, EXPERTS}
    assert found["dtype"].keys() == DTYPES.keys()
    assert found["producer"].keys() == producers.PRODUCERS.keys()


def test_no_stratum_of_the_grid_is_thin() -> None:
    assert min(count for found in sound.table(sound.grid()).values() for count in found.values()) >= LEAST


def test_an_unsound_merge_is_an_alarm(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubled = producers.textbook(torch.float64, lambda W, A, B, scaling: W + 2 * scaling * (B @ A))
    monkeypatch.setitem(producers.PRODUCERS, "float64", doubled)
    found = sound.judged(Sound("llama", "plain", "bf16", "float64", "same", "single", 1e-2), shelf, tmp_path / "out")
    assert found.alarm.startswith("REJECTED")
