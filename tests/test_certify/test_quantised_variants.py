"""What adapters do beside plain LoRA, on a quantised base: gains, whole modules, layers twice, several at once."""

from pathlib import Path
from typing import Any

import pytest

import certify
import merge
from certify.verdict import Verdict
from merge.proxies import make_checkpoint
from tests.test_merge.test_fp8_variants import trained

VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    "a module trained whole": {"target_modules": ["q_proj"], "modules_to_save": ["o_proj"]},
    "layers twice": {"target_modules": ["q_proj"], "layer_replication": [[0, 1], [0, 1]]},
    "two": {"target_modules": ["v_proj"]},
}
WAYS = (("same", "nearest"), ("same", "faithful"), ("bf16", "nearest"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama-fp8-tensor", tmp_path_factory.mktemp("variants") / "base", layers=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sound_merge_is_certified(variant: str, base: Path, tmp_path: Path) -> None:
    adapters = [trained(base, tmp_path / "one", VARIANTS[variant])[0]]
    if variant == "two":
        adapters.append(trained(base, tmp_path / "two", {"target_modules": ["v_proj", "o_proj"]}, seed=1)[0])
    weights = (0.5, -2.0)[: len(adapters)] if variant == "two" else ()
    for output, rounding in WAYS:
        out = tmp_path / f"{output}-{rounding}"
        merge.merge(base, adapters, out, weights=weights, output_dtype=output, rounding=rounding)
        terms: dict[str, Any] = {"weights": weights, "output_dtype": output, "criterion": rounding}
        found = certify.judge(base, adapters, out, **terms, level="modules", min_retention=0.0)
        assert found.verdict is Verdict.CERTIFIED, found.reason
