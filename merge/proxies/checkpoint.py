"""A family's proxy as files: shards, index, configuration, tokenizer and card, the same bytes for the same seed."""

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import tokenizers
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers

from merge.encodings import CODES
from merge.errors import MergeError
from merge.proxies import families, fused
from merge.proxies.families import Family
from merge.proxies.quantised import QUANTISERS, SCALES, quantised

FAMILIES: dict[str, Callable[[int], Family]] = {
    "deepseek-v3": families.deepseek_v3,
    "deepseek-v3-fp8-ragged": lambda layers: quantised(families.deepseek_v3(layers, ragged=True), QUANTISERS["fp8"]),
    **{
        f"deepseek-v3-{name}": functools.partial(lambda recipe, layers: quantised(families.deepseek_v3(layers), recipe), QUANTISERS[name])
        for name in ("fp8", "fp8-ue8m0", "fp8-e8m0", "fp8-apart")
    },
    "llama": families.llama,
    **{
        f"llama-{name}": functools.partial(lambda recipe, layers: quantised(families.llama(layers), recipe), QUANTISERS[name])
        for name in ("fp8-channel", "fp8-tensor")
    },
    "llama4": fused.llama4,
    "qwen2": families.qwen2,
    "qwen3.5-moe": fused.qwen3_5_moe,
    "gpt2": families.gpt2,
}
DEPTH = {"llama4": 2, "qwen3.5-moe": 2}
DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32}
SIGMA = 0.02  # of the weights, as initialisers choose it
COPIED = {".embed_tokens.weight": "model.embed_tokens.weight", ".shared_head.head.weight": "lm_head.weight"}  # by the MTP layer
SPECIAL = ("<s>", "</s>", "<pad>")
CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"


def make_checkpoint(family: str, out: Path, *, layers: int | None = None, seed: int = 0) -> Path:
    """Write one proxy checkpoint (under 20 MB, within seconds) and return its directory.

    family  one of FAMILIES; the ends of the names say how it is quantised
    layers  decoder layers, 3 unless given, 2 where experts are fused; with 61, deepseek-v3 has as many as the real one

    Raises MergeError if the family is unknown or `out` is not empty.
    """
    if family not in FAMILIES:
        raise MergeError(f"--family {family}: one of {', '.join(FAMILIES)} was expected. Nothing was written.")
    if out.exists() and any(out.iterdir()):
        raise MergeError(f"{out} is not empty. Nothing was written.")
    made = FAMILIES[family](layers or DEPTH.get(family, 3))
    out.mkdir(parents=True, exist_ok=True)
    weight_map, total = _write_shards(out, made, _values(made, seed))
    if made.shards > 1:
        _write_json(
            out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        )
    _write_json(out / "config.json", made.config)
    ids = {"bos_token_id": 256, "eos_token_id": 257}
    _write_json(out / "generation_config.json", {"_from_model_config": True, **ids, "do_sample": True, "temperature": 0.6})
    write_tokenizer(out)
    (out / "README.md").write_text(f"---\nlicense: mit\n---\n# proxy of {family}\n\nRandom weights in the real structure, seed {seed}.\n")
    for path in out.iterdir():
        path.chmod(0o644)
    return out


def _values(family: Family, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor, from one generator in the family's order; the MTP layer's embedding and head are copies, as published."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {}
    for name, dtype, shape in family.tensors:
        if name in made:  # a scale, with its weight
            yield name, made.pop(name)
        elif dtype == CODES:
            codes, scales = family.quantiser.of(_rugged(SIGMA * torch.randn(shape, generator=generator), generator))
            made[name + family.quantiser.suffix] = scales
            yield name, codes
        elif name.endswith(".input_scale"):
            yield name, torch.full(shape, 0.03125).to(SCALES[dtype])
        else:
            original = next((of for end, of in COPIED.items() if name.startswith("model.layers.") and name.endswith(end)), None)
            noise = torch.randn(shape, generator=generator)
            tensor = made[original].clone() if original else _plain(name, noise).to(DTYPES[dtype])
            if name in COPIED.values():
                made[name] = tensor
            yield name, tensor


def _plain(name: str, noise: torch.Tensor) -> torch.Tensor:
    if name.endswith("attn.bias") and noise.dim() == 4:  # GPT-2's causal mask
        return torch.ones_like(noise).tril()
    if "norm" in name or ".ln_" in name or name.startswith("ln_f"):
        return 0.1 * noise + (0.0 if name.endswith("bias") else 1.0)
    return SIGMA * noise


def _rugged(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every block of 128 × 128 has a magnitude of its own, so that a scale taken from a wrong place shows."""
    rows, columns = weight.shape
    powers = torch.exp2(torch.randint(-1, 2, (-(-rows // 128), -(-columns // 128)), generator=generator).float())
    return weight * powers.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]


def _write_shards(out: Path, family: Family, values: Iterator[tuple[str, torch.Tensor]]) -> tuple[dict[str, str], int]:
    """(weight map, bytes of all tensors); contiguous runs of about equal size."""
    tensors = dict(values)
    total, weight_map = sum(tensor.nbytes for tensor in tensors.values()), {}
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, tensor in tensors.items():
        filled = sum(held.nbytes for held in shards[-1].values())
        if shards[-1] and len(shards) < family.shards and filled + tensor.nbytes > total / family.shards:
            shards.append({})
        shards[-1][name] = tensor
    for number, held in enumerate(shards, 1):
        file = "model.safetensors" if family.shards == 1 else family.shard_name.format(number, len(shards))
        save_file(held, out / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(held, file))
    return weight_map, total


def write_tokenizer(out: Path) -> None:
    """Bytes as tokens 0…255, then the specials."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[2])
    fast.chat_template = CHAT
    fast.save_pretrained(out)


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")
