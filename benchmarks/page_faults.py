"""Faults of merges, as the checks would tell them; drawn with their modules by a seed."""

import random
from collections.abc import Callable
from dataclasses import replace

from benchmarks.page_case import EXPERTS, LAYERS, Story
from certify.finding import Finding, Outcome

ATTENTION = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
EXPERT = ("gate_proj", "up_proj", "down_proj")
Fault = Callable[[Story, int, random.Random], str]  # plants itself in a layer; returns the sentence that a reader should be able to say


def plant(story: Story, count: int) -> list[str]:
    """That many different faults, each in its own layers; the answers."""
    chosen = story.chance.sample(FAULTS, count)
    layers = story.chance.sample(range(3, LAYERS), count)
    return [fault(story, layer, story.chance) for fault, layer in zip(chosen, layers, strict=True)]


def expert_left_out(story: Story, layer: int, chance: random.Random) -> str:
    expert = chance.randrange(EXPERTS)
    for projection in EXPERT:
        wrong(story, f"model.layers.{layer}.mlp.experts.{expert}.{projection}.weight", "never merged: equal to the base", 0.0, 31.0)
    return f"expert {expert} of layer {layer} was never merged"


def merged_twice(story: Story, layer: int, chance: random.Random) -> str:
    module = chance.choice(ATTENTION)
    wrong(story, f"model.layers.{layer}.self_attn.{module}.weight", "merged twice", 1.99, 40.0)
    return f"{module} of layer {layer} was merged twice"


def other_scaling(story: Story, layer: int, chance: random.Random) -> str:  # noqa: ARG001
    module = chance.choice(ATTENTION)
    for each in range(LAYERS):
        wrong(story, f"model.layers.{each}.self_attn.{module}.weight", "α/√r where α/r is due", 5.6, 160.0)
    return f"{module} has the factor α/√r instead of α/r in every layer"


def mtp_lost(story: Story, layer: int, chance: random.Random) -> str:  # noqa: ARG001
    for name in [name for name in story.names if name.startswith(f"model.layers.{LAYERS}.")]:
        story.gone.add(name)
        story.found[name] = [Finding("C2", name, Outcome.FAILED, "missing; the base has BF16", {"problem": "missing"})]
    unit = f"model.layers.{LAYERS}"
    story.found[unit] = [Finding("C9", unit, Outcome.FAILED, "its tensors are missing from the merged checkpoint")]
    return f"the MTP layer (layer {LAYERS}) is missing"


def router_changed(story: Story, layer: int, chance: random.Random) -> str:
    name = f"model.layers.{layer}.mlp.gate.e_score_correction_bias"
    differing = chance.randrange(3, 60)
    sentence = f"{differing} of 1,024 bytes differ from the base, the first at byte 12; no adapter touches this tensor"
    story.found[name][1] = Finding("C3", name, Outcome.FAILED, sentence, {"differing": differing, "total": 1024})
    broken(story, layer, 2.4)
    return f"the router's bias of layer {layer} differs from the base"


def experts_exchanged(story: Story, layer: int, chance: random.Random) -> str:
    one, other = chance.sample(range(EXPERTS), 2)
    for projection in EXPERT:
        for here, there in ((one, other), (other, one)):
            cause = f"this is model.layers.{layer}.mlp.experts.{there}.{projection}.weight, merged: tensors or experts exchanged"
            wrong(story, f"model.layers.{layer}.mlp.experts.{here}.{projection}.weight", cause, 0.01, 900.0)
    return f"experts {one} and {other} of layer {layer} are exchanged"


def not_a_number(story: Story, layer: int, chance: random.Random) -> str:
    expert = chance.randrange(EXPERTS)
    name = f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"
    wrong(story, name, "not finite: NaN or infinity was stored (100% of the wrong elements)", None, 1e30)
    return f"down_proj of expert {expert} of layer {layer} holds NaN"


def rows_left_out(story: Story, layer: int, chance: random.Random) -> str:
    module = chance.choice(ATTENTION)
    wrong(story, f"model.layers.{layer}.self_attn.{module}.weight", "never merged in rows 0 to 127", 0.91, 28.0)
    return f"rows 0 to 127 of {module} of layer {layer} were not merged"


def extra_tensors(story: Story, layer: int, chance: random.Random) -> str:  # noqa: ARG001
    for module in ATTENTION:
        name = f"model.layers.{layer}.self_attn.{module}.base_layer.weight"
        story.new.add(name)
        story.found[name] = [Finding("C2", name, Outcome.FAILED, "BF16 (1, 1) is not a tensor of the base", {"problem": "extra"})]
    return f"layer {layer} has five tensors too many (base_layer)"


def template_lost(story: Story, layer: int, chance: random.Random) -> str:  # noqa: ARG001
    sentence = "the chat template is not the base's; no adapter brings one"
    story.found["tokenizer_config.json"] = [Finding("C7", "tokenizer_config.json", Outcome.FAILED, sentence, {"problems": 1})]
    return "the chat template was replaced"


def norms_retyped(story: Story, layer: int, chance: random.Random) -> str:
    norm = chance.choice(("input_layernorm", "post_attention_layernorm"))
    for each in range(layer, min(layer + 5, LAYERS)):
        name = f"model.layers.{each}.{norm}.weight"
        sentence = "stored as F32; BF16 was expected (the base has BF16)"
        story.found[name] = [Finding("C2", name, Outcome.FAILED, sentence, {"problem": "dtype"})]
    return f"{norm} of layers {layer} to {min(layer + 4, LAYERS - 1)} is stored as F32"


def shared_expert_of_another_layer(story: Story, layer: int, chance: random.Random) -> str:
    projection = chance.choice(EXPERT)
    other = 3 + (layer - 2) % (LAYERS - 3)
    cause = f"the delta of model.layers.{other}.mlp.shared_experts.{projection}.weight was added"
    wrong(story, f"model.layers.{layer}.mlp.shared_experts.{projection}.weight", cause, 0.02, 33.0)
    return f"the shared expert's {projection} of layer {layer} got the delta of layer {other}"


FAULTS: tuple[Fault, ...] = (
    expert_left_out, merged_twice, other_scaling, mtp_lost, router_changed, experts_exchanged, not_a_number, rows_left_out,
    extra_tensors, template_lost, norms_retyped, shared_expert_of_another_layer,
)  # fmt: skip


def wrong(story: Story, name: str, cause: str, kept: float | None, ratio: float) -> None:
    """C4, C5 and C9 refuse a tensor, as the gate words it."""
    figures = story.figures(name, kept if kept is not None else 0.0, ratio) | {"cause": cause, "retention": kept}
    figures["beyond"] = int(figures["elements"]) // 3  # type: ignore[arg-type]
    sentence = (
        f"{figures['beyond']:,} of {figures['elements']:,} elements (33.33%) are no right rounding of W + Δ; worst at [17, 512]: "
        f"stored 0.0123, allowed [0.0151, 0.0151]; cause: {cause}"
    )
    faithless = Finding("C5", name, Outcome.FAILED, "the module answers to another share of the adapter's change", {"slope": kept})
    story.found[name] = [story.found[name][0], Finding("C4", name, Outcome.FAILED, sentence, figures), faithless]
    if kept is not None:
        story.found[name].append(Finding("C8", name, Outcome.PASSED, figures=story.fidelity(kept)))
    broken(story, int(name.split(".")[2]), 1 + ratio / 20 if ratio < 1e6 else 50)


def broken(story: Story, layer: int, times: float) -> None:
    """C9 refuses the layer."""
    unit = f"model.layers.{layer}"
    sound = story.found[unit][0]
    error = float(sound.figures["err_merged"] or 0) * times
    figures = {**sound.figures, "err_merged": error, "K": 1.02 * times}
    sentence = f"the answer is {error:.3g} from that of W + Δ rounded, where a right merge stays below {error / times * 1.6:.3g}"
    story.found[unit] = [replace(sound, outcome=Outcome.FAILED, sentence=sentence, figures=figures)]
