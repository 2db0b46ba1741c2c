"""C9: sound layers pass whoever rounds them, faults are seen by their layer, and what cannot be told is said to be so."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from certify.checks.c9_layers import LayerBehaviour
from certify.expect.ledger import build_ledger
from certify.finding import Finding, Outcome
from certify.inputs.adapter import open_adapter
from certify.inputs.checkpoint import open_checkpoint
from certify.layers.tolerance import too_many
from tests.test_certify.layer_cases import ALPHA, FAMILIES, RANK, examine, make, sound
from tests.test_certify.layer_faults import faults, told

Merge = Callable[[Tensor, Tensor, Tensor, float], Tensor]  # (W, A, B, s) → merged
LLAMA_LAYER = "model.layers.1"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On matrices this small, threads wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layers")


def by_subject(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_merge_passes_in_every_unit(family: str, room: Path) -> None:
    findings = examine(sound(family, 3e-1, room))
    assert [(finding.subject, finding.sentence) for finding in findings if finding.outcome is not Outcome.PASSED] == []
    adapted = [finding.figures for finding in findings if "K" in finding.figures]
    assert len(adapted) >= 2
    for figures in adapted:
        assert figures["K"] == 0.0, "the same arithmetic gives the same bits"
        assert float(figures["exact_unmerged"] or 0) < float(figures["exact_unmerged_max"] or 0) < 1e-4 < float(figures["err_base"] or 0)


@pytest.mark.parametrize(
    ("family", "rho", "fault"),
    [
        ("llama", 1e-1, "o missing"), ("gemma3_text", 1e-2, "o × 0.95"), ("gpt2", 1e-2, "o transposed"), ("t5", 1e-2, "q missing"),
        ("qwen3_moe", 1e-2, "an expert's down missing"), ("qwen3_moe", 1e-2, "two rows of the router swapped"),
        ("deepseek_v3", 1e-2, "two experts swapped"), ("deepseek_v3", 1e-2, "deltas of two experts swapped"),
    ],
)  # fmt: skip
def test_a_fault_fails_in_its_layer_and_nowhere_else(family: str, rho: float, fault: str, room: Path) -> None:
    case = make(family, rho, room)
    tensors = case.sound()
    faults(family)[fault](case, tensors)
    case.write(tensors)
    assert [finding.subject for finding in examine(case) if finding.outcome is Outcome.FAILED] == [case.family.layer]


def test_what_outputs_cannot_tell_is_undecided_and_named(room: Path) -> None:
    case = make("bert", 1e-2, room)
    tensors = case.sound()
    faults("bert")["q missing"](case, tensors)
    case.write(tensors)
    findings = examine(case)
    assert told(case, findings) == "undecided"
    assert "attention.self.query" in by_subject(findings)[case.family.layer].sentence
    assert "attention.self.query" in str(by_subject(findings)[case.family.layer].figures["tensors"])


def double(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    return (W.double() + s * (B.double() @ A.double())).to(W.dtype)


def rank_by_rank(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    out = W.float()
    for k in range(len(A)):
        out = out + torch.outer(B[:, k] * s, A[k])
    return out.to(W.dtype)


def twice_rounded(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    """PEFT's safe_merge."""
    return W + (s * (B @ A)).to(W.dtype)


@pytest.mark.parametrize(
    ("how", "criterion", "outcome"),
    [
        (double, "nearest", Outcome.PASSED), (rank_by_rank, "nearest", Outcome.PASSED),
        (twice_rounded, "peft", Outcome.PASSED), (twice_rounded, "nearest", Outcome.FAILED),
    ],
)  # fmt: skip
def test_only_the_declared_rounding_is_right(how: Merge, criterion: str, outcome: Outcome, room: Path) -> None:
    case = make("llama", 3e-1, room)
    factors, tensors = load_file(case.adapter / "adapter_model.safetensors"), case.sound()
    for key in case.deltas:
        path = f"base_model.model.{key.removesuffix('.weight')}"
        tensors[key] = how(case.held[key], factors[f"{path}.lora_A.weight"], factors[f"{path}.lora_B.weight"], ALPHA / RANK)
    case.write(tensors)
    layers = [finding for finding in examine(case, criterion) if "K" in finding.figures]
    assert {finding.outcome for finding in layers} == {outcome}


def test_the_expectation_itself_is_held_against_pefts_unmerged_layers(room: Path) -> None:
    """A ledger that reads a scaling wrongly, at a delta of a thousandth: weights and expectation agree, the trained model does not."""
    case = make("llama", 1e-3, room)
    wrong = {key: 1.05 * delta for key, delta in case.deltas.items()}
    case.write({key: case.rounded(key, wrong[key]) if key in wrong else W for key, W in case.held.items()})
    base, adapter = open_checkpoint(case.base), open_adapter(case.adapter)
    ledger = build_ledger(base, [adapter], [1.0])
    spoiled = {key: tuple(dataclasses.replace(part, scaling=1.05 * part.scaling) for part in parts) for key, parts in ledger.parts.items()}
    layers = LayerBehaviour(
        base, open_checkpoint(case.merged), dataclasses.replace(ledger, parts=spoiled), [adapter], [1.0], "nearest"
    )  # fmt: skip
    (finding,) = layers.examine(LLAMA_LAYER)
    assert finding.outcome is Outcome.FAILED
    assert "PEFT's unmerged layers" in finding.sentence


def test_several_adapters_with_weights(room: Path) -> None:
    one, other = make("qwen3_moe", 3e-1, room), make("qwen3_moe", 1e-1, room)
    one.write({
        key: one.rounded(key, torch.stack([0.5 * one.deltas[key], 0.25 * other.deltas[key]]).sum(0)) if key in one.deltas else W
        for key, W in one.held.items()
    })  # fmt: skip
    base, adapters = open_checkpoint(one.base), [open_adapter(one.adapter), open_adapter(other.adapter)]
    ledger = build_ledger(base, adapters, [0.5, 0.25])
    layers = LayerBehaviour(base, open_checkpoint(one.merged), ledger, adapters, [0.5, 0.25], "nearest")
    found = [finding for unit in layers.units for finding in layers.examine(unit)]
    assert [finding.sentence for finding in found if finding.outcome is not Outcome.PASSED] == []


def test_an_untouched_unit_must_answer_exactly(room: Path) -> None:
    case = make("llama", 1e-1, room)
    tensors = case.sound()
    tensors["model.norm.weight"][3] *= 1 + 2**-7
    case.write(tensors)
    assert [finding.subject for finding in examine(case) if finding.outcome is Outcome.FAILED] == ["model.norm"]


def test_other_dtypes_are_judged_as_they_are_stored(room: Path) -> None:
    """bf16 → fp32 and bf16 → fp16: untouched units are the base's values in another dtype."""
    case = make("qwen2", 1e-1, room)
    for dtype in (torch.float32, torch.float16):
        case.write({
            key: (W.float() + case.deltas[key]).to(dtype) if key in case.deltas else W.to(dtype) for key, W in case.held.items()
        })  # fmt: skip
        assert [finding.sentence for finding in examine(case) if finding.outcome is Outcome.FAILED] == []


def test_a_correction_that_only_choices_show_is_seen_by_the_flips(room: Path) -> None:
    """DeepSeek's bias moves tokens to other experts and no score: all of a layer's answers but the routes are right."""
    case = make("deepseek_v3", 1e-1, room)
    tensors = case.sound()
    bias = f"{case.family.layer}.mlp.gate.e_score_correction_bias"
    tensors[bias] = 30 * tensors[bias].flip(0)
    case.write(tensors)
    (finding,) = [finding for finding in examine(case) if finding.outcome is Outcome.FAILED]
    assert finding.subject == case.family.layer
    assert "tokens go to other experts" in finding.sentence


@pytest.mark.parametrize(("flips", "reference", "expected"), [(0, 0, False), (19, 0, False), (20, 0, True), (30, 30, False), (64, 4, True)])
def test_how_many_tokens_may_stand_on_a_near_tie(flips: int, reference: int, expected: bool) -> None:
    """20 heads in a row are rarer than one in a million."""
    assert too_many(flips, reference) is expected
