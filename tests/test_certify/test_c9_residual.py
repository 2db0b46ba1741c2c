"""C9 where the residual stream is far larger than what a layer adds to it: whose roundings its sums are.

x and u, which are two computations of the same answer, differ by them; m and r do everything in the same order, and owe nothing to them.
"""

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from safetensors.torch import save_file

from certify.checks import c9_layers
from certify.finding import Finding, Outcome
from certify.layers.answers import OUTPUT, Answer
from certify.layers.trial import Link, Trial, touched
from certify.layers.unit import Call, Unit
from certify.layers.weights import Version
from tests.test_certify.layer_cases import WEIGHTS, Case, examine, make

EMBEDDING, LAYER = "model.embed_tokens.weight", "model.layers.0"
LOUD = 2.0**14  # a power of two, so that the table stays what it is; every layer norms its input, and adds what it always adds


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Case:
    case = make("llama", 1e-1, tmp_path_factory.mktemp("loud"))
    case.held[EMBEDDING] *= LOUD
    save_file(case.held, case.base / WEIGHTS, metadata={"format": "pt"})
    return case


@dataclasses.dataclass
class Seen:
    """A layer's link of its answer, and what the sums with the residual stream may add to a distance."""

    link: Link
    residual: float


def judged(case: Case, monkeypatch: pytest.MonkeyPatch) -> tuple[Finding, Seen]:
    """The finding about LAYER, and the distances behind it. 4 · 2⁻²⁴ · ‖u‖: two sums in a layer, in two answers (Higham §3.1)."""
    seen: dict[str, Seen] = {}

    def watched(unit: Unit, call: Call, *, layer: bool) -> Trial:
        trial = touched(unit, call, layer=layer)
        u: Answer = unit.answer(Version("unmerged"), call)
        seen[unit.path] = Seen(trial.links[OUTPUT], 4 * 2.0**-24 * float(u.measures[OUTPUT].double().norm()))
        return trial

    monkeypatch.setattr(c9_layers, "touched", watched)
    (finding,) = [finding for finding in examine(case) if finding.subject == LAYER]
    return finding, seen[LAYER]


def test_a_sound_layer_is_not_refused_for_the_roundings_of_its_sums(loud: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    loud.write(loud.sound())
    finding, seen = judged(loud, monkeypatch)
    assert finding.outcome is Outcome.PASSED, finding.sentence
    assert float(seen.link.exact) > float(seen.link.exact_most) - seen.residual, "without that allowance this layer would be refused"


def test_a_wrong_layer_is_not_excused_by_them(loud: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor rounded towards zero: less than the sums' roundings, and yet more than a right merge may show."""
    key, tensors = f"{LAYER}.self_attn.o_proj.weight", loud.sound()
    exact = loud.held[key].float() + loud.deltas[key]
    tensors[key] = (exact.view(torch.int32) & ~0xFFFF).view(torch.float32).bfloat16()
    loud.write(tensors)
    finding, seen = judged(loud, monkeypatch)
    assert finding.outcome is Outcome.FAILED
    assert "from that of W + Δ rounded" in finding.sentence
    assert float(seen.link.merged) < float(seen.link.merged_most) + seen.residual, "with that allowance this layer would pass"
