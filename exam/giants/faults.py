"""Faults that only a quantised checkpoint can have, each planted alone in a sound merge, each with the checks that must catch it."""

import torch
from torch import Tensor

from exam.giants.bench import DECODED, FAITHFUL, FUSED, LIGHT, LOST, NEAREST
from exam.giants.folder import adapter_delta, encode, fresh_scales, spread
from exam.giants.scene import SCALE, Scene, fault

RAGGED, CHANNEL, TENSOR, POWERS = "deepseek-v3-fp8-ragged", "llama-fp8-channel", "llama-fp8-tensor", "deepseek-v3-fp8-e8m0"
CONFIG, SETTINGS = "config.json", "quantization_config"
TOUCHED, TWIN = "model.layers.1.self_attn.q_b_proj.weight", "model.layers.2.self_attn.q_b_proj.weight"
CARRIED, OTHER = "model.layers.1.mlp.experts.0.gate_proj.weight", "model.layers.1.mlp.experts.1.gate_proj.weight"
LATENT, DRAFT = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "model.layers.3.self_attn.kv_a_proj_with_mqa.weight"
CHANNELS, EXPERTS = "model.layers.0.mlp.gate_proj.weight", "model.language_model.layers.0.mlp.experts.gate_up_proj"


@fault("Δ added to the raw codes", NEAREST, ("C4", TOUCHED))
def _raw_codes(s: Scene) -> None:
    s.merged.tensors[TOUCHED] = (s.base.tensors[TOUCHED].float() + adapter_delta(s.adapter, TOUCHED).float()).to(torch.float8_e4m3fn)


@fault("codes taken for weights", DECODED, ("C4", TOUCHED), ("C3", CARRIED))
def _unscaled(s: Scene) -> None:
    s.merged.tensors[TOUCHED] = (s.base.tensors[TOUCHED].float() + adapter_delta(s.adapter, TOUCHED).float()).bfloat16()
    s.merged.tensors[CARRIED] = s.base.tensors[CARRIED].bfloat16()


@fault("scales recomputed from a bf16 detour", NEAREST, ("C4", TOUCHED + SCALE), ("C3", CARRIED + SCALE))
def _detour(s: Scene) -> None:
    for key, values in ((TOUCHED, s.due(TOUCHED)), (CARRIED, s.base_value(CARRIED))):
        detour = values.float().bfloat16().float()
        s.rescale(key, fresh_scales(detour), detour)


@fault("merged by way of bf16 on the kept scales", NEAREST, ("C4", TOUCHED))
def _bf16_first(s: Scene) -> None:
    """W rounded to bf16, Δ added and rounded again, as a bf16 pipeline does, then quantised."""
    detour = (s.base_value(TOUCHED).float().bfloat16().float() + adapter_delta(s.adapter, TOUCHED).float()).bfloat16().float()
    s.merged.tensors[TOUCHED] = encode(detour, s.merged.tensors[TOUCHED + SCALE])


@fault("another block size announced", NEAREST, ("C7", CONFIG))
def _block_announced(s: Scene) -> None:
    s.merged.config[SETTINGS]["weight_block_size"] = [64, 64]


@fault("decoded in blocks of another size", DECODED, ("C4", TOUCHED), ("C3", CARRIED))
def _block_decoded(s: Scene) -> None:
    s.merged.tensors[TOUCHED] = (_halved(s, TOUCHED) + adapter_delta(s.adapter, TOUCHED)).float().bfloat16()
    s.merged.tensors[CARRIED] = _halved(s, CARRIED).float().bfloat16()


def _halved(s: Scene, key: str) -> Tensor:
    """Blocks of 256 × 256 read from the same scales: each takes the first of its four."""
    codes, scales = s.base.tensors[key].double(), s.base.tensors[key + SCALE]
    return codes * spread(scales[::2, ::2].contiguous(), codes.shape, (256, 256)).double()


@fault("quantization_config missing", NEAREST, ("C7", CONFIG))
def _config_missing(s: Scene) -> None:
    del s.merged.config[SETTINGS]


@fault("quantization_config of another method", NEAREST, ("C7", CONFIG))
def _other_method(s: Scene) -> None:
    s.merged.config[SETTINGS]["quant_method"] = "fbgemm_fp8"


@fault("quantization_config left in a bf16 folder", DECODED, ("C7", CONFIG))
def _config_left(s: Scene) -> None:
    s.merged.config[SETTINGS] = s.base.config[SETTINGS]


@fault("another tensor's scale", NEAREST, ("C4", TOUCHED + SCALE), ("C3", CARRIED + SCALE))
def _other_scale(s: Scene) -> None:
    for key, other in ((TOUCHED, TWIN), (CARRIED, OTHER)):
        s.merged.tensors[key + SCALE] = s.merged.tensors[other + SCALE]


@fault("a scale one ulp off", NEAREST, ("C4", TOUCHED + SCALE), ("C3", CARRIED + SCALE))
def _ulp(s: Scene) -> None:
    for key in (TOUCHED, CARRIED):
        scales = s.merged.tensors[key + SCALE].clone()
        scales[0, 0] = torch.nextafter(scales[0, 0], torch.tensor(torch.inf))
        s.merged.tensors[key + SCALE] = scales


@fault("an exponent of a scale one up", NEAREST, ("C4", TOUCHED + SCALE), ("C3", CARRIED + SCALE), proxy=POWERS)
def _exponent(s: Scene) -> None:
    for key in (TOUCHED, CARRIED):
        exponents = s.merged.tensors[key + SCALE].view(torch.uint8).clone()
        exponents[0, 0] += 1
        s.merged.tensors[key + SCALE] = exponents.view(torch.float8_e8m0fnu)


@fault("scales doubled where the values fit", NEAREST, ("C4", TOUCHED + SCALE))
def _doubled(s: Scene) -> None:
    s.rescale(TOUCHED, 2 * s.merged.tensors[TOUCHED + SCALE], s.due(TOUCHED))


@fault("a grid so coarse that all is right on it", NEAREST, ("C4", TOUCHED + SCALE))
def _coarse(s: Scene) -> None:
    s.rescale(TOUCHED, 2.0**12 * s.merged.tensors[TOUCHED + SCALE], s.due(TOUCHED))


@fault("a fresh scale that is no power of two", NEAREST, ("C4", TOUCHED + SCALE), proxy="deepseek-v3-fp8-ue8m0")
def _no_power(s: Scene) -> None:
    s.rescale(TOUCHED, fresh_scales(s.due(TOUCHED).float()), s.due(TOUCHED))


@fault("values cut off at 448 kept scales", NEAREST, ("C4", "model.layers.*.self_attn.*.weight"))
def _cut_off(s: Scene) -> None:
    """Where the merged values outgrow their scales, which the engine doubles."""
    for scale in [name for name in s.base.tensors if name.endswith(SCALE)]:
        if not torch.equal(s.merged.tensors[scale], s.base.tensors[scale]):
            key = scale.removesuffix(SCALE)
            s.rescale(key, s.base.tensors[scale], s.due(key))


@fault("a code that is no number", NEAREST, ("C4", TOUCHED))
def _not_a_number(s: Scene) -> None:
    codes = s.merged.tensors[TOUCHED].view(torch.uint8).clone()
    codes[-1, -1] = 0x7F
    s.merged.tensors[TOUCHED] = codes.view(torch.float8_e4m3fn)


@fault("scales of the channels reversed", NEAREST, ("C4", f"{CHANNELS}_scale"), proxy=CHANNEL)
def _reversed(s: Scene) -> None:
    s.merged.tensors[f"{CHANNELS}_scale"] = s.merged.tensors[f"{CHANNELS}_scale"].flip(0)


@fault("an activation scale changed", NEAREST, ("C3", CHANNELS.replace("weight", "input_scale")), proxy=TENSOR)
def _activation(s: Scene) -> None:
    s.merged.tensors[CHANNELS.replace("weight", "input_scale")] *= 2


@fault("gate and up swapped, fused", NEAREST, ("C4", EXPERTS), proxy=FUSED)
def _swapped(s: Scene) -> None:
    for name in (EXPERTS, EXPERTS + SCALE) if s.merged.tensors[EXPERTS].dtype == torch.float8_e4m3fn else (EXPERTS,):
        value = s.merged.tensors[name]
        s.merged.tensors[name] = value.view(torch.uint8).roll(value.shape[1] // 2, 1).view(value.dtype)


fault("gate and up swapped, fused", DECODED, ("C4", EXPERTS), proxy=FUSED)(_swapped)


@fault("retention lost by nearest", LOST, ("C8", "adapter"))
def _nothing(_: Scene) -> None:
    """Every rounding is right, and most of the change is gone."""


fault("nearest where faithful was declared", LOST, ("C8", TOUCHED), criterion="faithful")(_nothing)


@fault("one tensor unmerged among faithful ones", LIGHT, ("C8", TOUCHED))
def _unmerged(s: Scene) -> None:
    for name in (TOUCHED, TOUCHED + SCALE):
        s.merged.tensors[name] = s.base.tensors[name]


@fault("codes two steps away", FAITHFUL, ("C4", TOUCHED))
def _two_steps(s: Scene) -> None:
    """Beyond both neighbours, in one element in a thousand."""
    codes = s.merged.tensors[TOUCHED].view(torch.uint8).clone()
    low = (codes & 0x7F < 0x70).view(-1).nonzero().view(-1)[::1000]
    codes.view(-1)[low] += 2
    s.merged.tensors[TOUCHED] = codes.view(torch.float8_e4m3fn)


@fault("scale keys left in a bf16 folder", DECODED, ("C2", CARRIED + SCALE), ("C2", TOUCHED + SCALE))
def _scales_left(s: Scene) -> None:
    for key in (CARRIED, TOUCHED):
        s.merged.tensors[key + SCALE] = s.base.tensors[key + SCALE]


@fault("an activation scale left in a bf16 folder", DECODED, ("C2", CHANNELS.replace("weight", "input_scale")), proxy=TENSOR)
def _activation_left(s: Scene) -> None:
    name = CHANNELS.replace("weight", "input_scale")
    s.merged.tensors[name] = s.base.tensors[name]


@fault("one fp8 tensor left in a bf16 folder", DECODED, ("C2", CARRIED), ("C7", CONFIG))
def _coded_left(s: Scene) -> None:
    s.merged.tensors[CARRIED] = s.base.tensors[CARRIED]


@fault("a ragged block decoded on the wrong grid", DECODED, ("C4", LATENT), ("C3", DRAFT), proxy=RAGGED)
def _ragged(s: Scene) -> None:
    """Rows divided by rows of scales: 116 rows a block where 128 are meant, as a loader does that forgets that the last one is short."""
    height = -(-s.base.tensors[LATENT].shape[0] // s.base.tensors[LATENT + SCALE].shape[0])
    s.merged.tensors[LATENT] = s.due(LATENT, (height, 128)).float().bfloat16()
    s.merged.tensors[DRAFT] = s.base_value(DRAFT, (height, 128)).float().bfloat16()


@fault("a ragged block merged on the wrong grid", NEAREST, ("C4", LATENT), proxy=RAGGED)
def _ragged_same(s: Scene) -> None:
    height = -(-s.base.tensors[LATENT].shape[0] // s.base.tensors[LATENT + SCALE].shape[0])
    s.merged.tensors[LATENT] = encode(s.due(LATENT, (height, 128)), s.base.tensors[LATENT + SCALE])
