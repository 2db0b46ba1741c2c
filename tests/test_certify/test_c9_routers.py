"""C9 where experts are odd: a router inside PEFT's layer, experts that compute nothing, a convolution that is as stacked as they."""

from pathlib import Path

import pytest
import transformers as t

from certify.finding import Finding, Outcome
from certify.inputs.checkpoint import open_checkpoint
from certify.layers.model import runnable
from certify.layers.routing import routers, stacks
from tests.test_certify.layer_cases import ATTENTION, EXPERTS, FAMILIES, GROUPED, MLP, SIZES, Case, Family, examine, sound

LAYER = "model.layers.1"
LATENT = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "head_dim": 16}
ODD = {
    "hunyuan_moe": Family(
        lambda: t.HunYuanMoEV1ForCausalLM(t.HunYuanMoEV1Config(**GROUPED, num_experts=4, moe_topk=2)),
        LAYER, "self_attn.q_proj", "self_attn.o_proj", "", (*ATTENTION, *MLP, "wg"), experts=True,
    ),
    "longcat_flash": Family(
        lambda: t.LongcatFlashForCausalLM(t.LongcatFlashConfig(
            **SIZES | LATENT | {"num_hidden_layers": 4}, num_layers=2, ffn_hidden_size=96, expert_ffn_hidden_size=32,
            n_routed_experts=EXPERTS - 4, zero_expert_num=4, moe_topk=2,
        )),
        LAYER, "self_attn.0.q_b_proj", "self_attn.0.o_proj", "", ("q_a_proj", "q_b_proj", "o_proj"), experts=True,
    ),
}  # fmt: skip


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setitem(FAMILIES, request.param, ODD[request.param])  # type: ignore[arg-type]
    return sound(request.param, 1e-1, tmp_path)


def of_layer(case: Case) -> Finding:
    return next(finding for finding in examine(case) if finding.subject == LAYER)


@pytest.mark.parametrize(("case", "experts"), [("hunyuan_moe", 4), ("longcat_flash", EXPERTS)], indirect=["case"])
def test_every_expert_is_asked_and_a_sound_merge_passes(case: Case, experts: int) -> None:
    finding = of_layer(case)
    assert (finding.outcome, finding.sentence) == (Outcome.PASSED, "")
    assert finding.figures["experts"] == experts


@pytest.mark.parametrize("case", ["hunyuan_moe"], indirect=True)
def test_the_score_of_an_adapted_router_is_judged(case: Case) -> None:
    gate = f"{LAYER}.mlp.gate.wg.weight"
    case.write(case.sound() | {gate: case.held[gate]})
    finding = of_layer(case)
    assert finding.outcome is Outcome.FAILED
    assert "the score of the router mlp.gate.wg is" in finding.sentence


def test_a_convolution_is_no_stack_of_experts_and_a_projection_no_router(tmp_path: Path) -> None:
    """In the published Qwen3-Next k_proj has as many rows as there are experts; here v_proj has, and in_proj_qkvz feeds a convolution."""
    config = FAMILIES["qwen3_next"].build().config
    config.num_experts = config.num_key_value_heads * config.head_dim
    t.Qwen3NextForCausalLM(config).save_pretrained(tmp_path)
    model, _ = runnable(open_checkpoint(tmp_path), predictors=False)
    for layer in model.model.layers:
        experts = stacks(layer)
        assert experts == {"mlp.experts": config.num_experts}
        assert routers(layer, experts) == {"mlp.gate": config.num_experts}
