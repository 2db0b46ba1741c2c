"""PEFT's pattern semantics, and every field that would be misinterpreted refused by name."""

import math

import pytest

from merge.adapters import config
from merge.errors import AdapterError

PLAIN = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
PATH = "model.layers.1.self_attn.q_proj"


def test_scaling() -> None:
    assert config.read(PLAIN).scaling(PATH, 8) == 2.0
    assert config.read({**PLAIN, "use_rslora": True}).scaling(PATH, 8) == 16 / math.sqrt(8)


@pytest.mark.parametrize(
    ("key", "alpha"),
    [
        ("q_proj", 32),
        (r"layers\.1\.self_attn\.q_proj", 32),
        ("1.*q_proj", 32),
        ("^model.layers.1.self_attn.q_proj", 32),
        ("q", 16),
        ("proj", 16),
        ("layers.1", 16),
        ("attn.q_proj", 16),
    ],
)
def test_a_pattern_matches_whole_dotted_tails(key: str, alpha: int) -> None:
    assert config.read({**PLAIN, "alpha_pattern": {key: 32}}).scaling(PATH, 8) == alpha / 8


def test_two_patterns_that_disagree_are_both_named() -> None:
    settings = config.read({**PLAIN, "alpha_pattern": {"q_proj": 4, ".*1.*q_proj": 128}})
    with pytest.raises(AdapterError, match=r"'q_proj': 4.*'\.\*1\.\*q_proj': 128"):
        settings.scaling(PATH, 8)
    agreeing = config.read({**PLAIN, "alpha_pattern": {"q_proj": 4, ".*1.*q_proj": 4}})
    assert agreeing.scaling(PATH, 8) == 0.5


def test_a_rank_that_is_not_the_configured_one() -> None:
    with pytest.raises(AdapterError, match="lora_A has rank 4, the configuration says 8"):
        config.read(PLAIN).scaling(PATH, 4)
    assert config.read({**PLAIN, "rank_pattern": {"q_proj": 4}}).scaling(PATH, 4) == 4.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alora_invocation_tokens", [1, 2]),
        ("use_qalora", True),
        ("bias", "some"),
        ("lora_B_layout", "column_major"),
        ("init_lora_weights", "pissa"),
        ("kasa_config", {"x": 1}),
        ("a_field_of_next_year", 3),
    ],
)
def test_what_would_be_misinterpreted_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(AdapterError, match=f"{field} = .*") as refusal:
        config.read({**PLAIN, field: value})
    assert "Nothing was written" in str(refusal.value)


@pytest.mark.parametrize("kind", ["LOHA", "PREFIX_TUNING", None])
def test_other_tuners_are_refused(kind: str | None) -> None:
    with pytest.raises(AdapterError, match="this version merges LORA"):
        config.read({**PLAIN, "peft_type": kind})


def test_targets() -> None:
    settings = config.read({**PLAIN, "layers_to_transform": [1], "exclude_modules": ["v_proj"], "target_modules": ["q_proj", "v_proj"]})
    assert settings.targets(PATH)
    assert not settings.targets(PATH.replace(".1.", ".2."))
    assert not settings.targets(PATH.replace("q_proj", "v_proj"))
    assert config.read({**PLAIN, "target_modules": r".*\.self_attn\..*"}).targets(PATH)
