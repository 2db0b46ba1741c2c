"""C9 of a few units: the forward goes as far as the last of them, and no farther."""

from pathlib import Path

import pytest

from certify import judge
from certify.checks.c9_layers import LayerBehaviour
from certify.finding import Outcome
from tests.test_certify.layer_cases import sound


def test_the_forward_ends_with_the_last_unit_that_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, seen, judged = sound("llama", 3e-1, tmp_path), [], LayerBehaviour._judge

    def noted(self: LayerBehaviour, unit: object, call: object, layer: bool) -> object:
        seen.append(unit)
        return judged(self, unit, call, layer)  # type: ignore[arg-type]

    monkeypatch.setattr(LayerBehaviour, "_judge", noted)
    units = [finding.subject for finding in judge(case.base, case.adapter, case.merged).findings if finding.code == "C9"]
    whole = len(seen)
    seen.clear()
    told = judge(case.base, case.adapter, case.merged, only="model.layers.0*")
    assert [(f.subject, f.outcome) for f in told.findings if f.code == "C9"] == [("model.layers.0", Outcome.PASSED)]
    assert told.verdict == "INCOMPLETE"
    assert 0 < len(seen) < whole
    assert len(units) > 2
