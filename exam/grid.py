"""What the faults are planted in: small multi-shard checkpoints of four families, at every size of delta and in every dtype."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from exam.cases import Case, edit, expected_deltas, make_base, merge_into, read
from exam.site import Role, Site

SIZES = (3e-1, 1e-2, 1e-3, 1e-4)  # ‖Δ‖/‖W‖
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
RANK, ALPHA = 8, 24.0  # α/r = 3 and α/√r = 8.5: no usual mistake has the value of another one
BIAS = "e_score_correction_bias"  # float32 in any checkpoint

FAMILIES: dict[str, dict[str, int]] = {  # sizes that differ from exam.cases; 64 × 64 makes attention, experts and head square
    "deepseek": {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 64, "v_head_dim": 16},
    "gpt2": {},
    "llama": {},
    "mixtral": {},
}
TARGETS = {
    "deepseek": ("o_proj", "gate_proj", "up_proj", "lm_head"),
    "gpt2": ("c_attn", "c_proj"),
    "llama": ("q_proj", "k_proj", "o_proj", "down_proj"),
    "mixtral": ("q_proj", "w1", "w3"),
}
MTP = "layers.3."  # DeepSeek's extra layer, which adapters never reach
TERMS: dict[str, dict[str, object]] = {
    "gpt2": {"fan_in_fan_out": True},
    "llama": {
        "use_rslora": True, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"down_proj": 4},
        "modules_to_save": ["embed_tokens", "lm_head", "input_layernorm"],
    },
}  # fmt: skip
SILENT = "model.layers.1.self_attn.o_proj.weight"  # of llama: its B is zero

EXPERT, DRAFT = "model.layers.2.mlp.experts.{}.up_proj.weight", "model.layers.3.mlp.experts.{}.up_proj.weight"
PLACES: tuple[tuple[str, Role, str, str, str], ...] = (  # family, role, kind, key, a tensor of the same shape
    ("deepseek", "adapted", "attention", "model.layers.0.self_attn.o_proj.weight", "model.layers.1.self_attn.o_proj.weight"),
    ("deepseek", "adapted", "mlp", "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"),
    ("deepseek", "adapted", "expert", EXPERT.format(1), EXPERT.format(2)),
    ("deepseek", "adapted", "head", "lm_head.weight", "model.layers.0.self_attn.o_proj.weight"),
    ("gpt2", "adapted", "conv1d attention", "transformer.h.0.attn.c_attn.weight", "transformer.h.1.attn.c_attn.weight"),
    ("llama", "silent", "attention, B = 0", SILENT, "model.layers.0.self_attn.o_proj.weight"),
    ("llama", "replaced", "embedding", "model.embed_tokens.weight", "lm_head.weight"),
    ("llama", "replaced", "head", "lm_head.weight", "model.embed_tokens.weight"),
    ("llama", "replaced", "norm", "model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight"),
    ("deepseek", "carried", "embedding", "model.embed_tokens.weight", "lm_head.weight"),
    ("deepseek", "carried", "router", "model.layers.1.mlp.gate.weight", "model.layers.2.mlp.gate.weight"),
    ("deepseek", "carried", "norm", "model.layers.1.input_layernorm.weight", "model.layers.2.input_layernorm.weight"),
    ("deepseek", "carried", "draft expert", DRAFT.format(0), DRAFT.format(1)),
)


@dataclass(frozen=True)
class Bench:
    """One sound merge of one family in one dtype at one size of delta, and the sites where it is spoiled."""

    family: str
    dtype: str
    rho: float
    case: Case
    sites: tuple[Site, ...]


def bench(family: str, dtype: str, rho: float, root: Path) -> Bench:
    """Built on disk below `root`; the base of a family and dtype is made once."""
    base = root / f"{family}-{dtype}"
    if not base.exists():
        _base(family, DTYPES[dtype], base)
    case = Case(base, root / f"{family}-{dtype}-{rho:g}" / "adapter", root / f"{family}-{dtype}-{rho:g}" / "merged")
    _adapter(family, rho, case)
    merge_into(case, case.merged)
    return Bench(family, dtype, rho, case, tuple(_site(case, *place[1:]) for place in PLACES if place[0] == family))


def overwrite(directory: Path, key: str, tensor: Tensor) -> None:
    """One tensor of one shard."""
    path = next(path for path in sorted(directory.glob("model*.safetensors")) if key in (held := load_file(path)))
    save_file(held | {key: tensor.contiguous()}, path, metadata={"format": "pt"})


def stored(site: Site, case: Case, tensor: Tensor) -> Tensor:
    """As the checkpoint keeps it: Conv1D is (in, out)."""
    return tensor.T.contiguous() if site.key in case.deltas and case.deltas[site.key][3] else tensor


def _base(family: str, dtype: torch.dtype, directory: Path) -> None:
    """Random weights drawn in the dtype itself; the first element of each tensor is 0.0, so that a zero's sign can be spoiled."""
    make_base(family, directory, **FAMILIES[family])
    torch.manual_seed(17)

    def drawn(key: str, tensor: Tensor) -> Tensor:
        fresh = (torch.randn(tensor.shape) * 0.05).to(torch.float32 if key.endswith(BIAS) else dtype)
        fresh.view(-1)[0] = 0.0
        return fresh

    edit(directory, drawn)
    _configure(directory, dtype=str(dtype).removeprefix("torch."))
    if family == "llama":
        _side_files(directory)


def _configure(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _side_files(directory: Path) -> None:
    """A tokenizer, a chat template, generation settings, code and a preprocessor."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<s>", "</s>", "<pad>", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    whole.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    whole.save_pretrained(directory)
    settings = {"do_sample": True, "temperature": 0.7, "bos_token_id": 1, "eos_token_id": 2}
    (directory / "generation_config.json").write_text(json.dumps(settings))
    (directory / "preprocessor_config.json").write_text('{"size": 224}')
    (directory / "modeling_own.py").write_text("# the base's own\n")
    (directory / "LICENSE").write_text("MIT")


def _adapter(family: str, rho: float, case: Case) -> None:
    """Float32 factors, every module at the same ‖Δ‖/‖W‖; what is saved whole differs from the base by as much."""
    case.adapter.mkdir(parents=True)
    terms: dict[str, object] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "use_rslora": False,
        "target_modules": list(TARGETS[family]), "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
        "fan_in_fan_out": False, "base_model_name_or_path": case.base.name,
    } | TERMS.get(family, {})  # fmt: skip
    (case.adapter / "adapter_config.json").write_text(json.dumps(terms))
    base = {key: tensor for held in read(case.base).values() for key, tensor in held.items()}
    torch.manual_seed(29)
    factors: dict[str, Tensor] = {}
    for key, W in sorted(base.items()):
        stem = f"base_model.model.{key.removesuffix('.weight')}"
        if key.endswith(tuple(f"{target}.weight" for target in TARGETS[family])) and MTP not in key:
            out, into = W.shape[::-1] if family == "gpt2" else W.shape
            rank = 2 if family == "llama" and "k_proj" in key else RANK
            factors[f"{stem}.lora_A.weight"] = torch.randn(rank, into)
            factors[f"{stem}.lora_B.weight"] = torch.zeros(out, rank) if (family, key) == ("llama", SILENT) else torch.randn(out, rank)
        elif family == "llama" and any(name in key for name in ("embed_tokens", "lm_head", "input_layernorm")):
            factors[stem + ".weight"] = W.float() + rho * W.float().std() * torch.randn(W.shape)
    _save(factors, case, family)
    for key, (A, B, s, _) in case.deltas.items():
        wanted, norm = rho * float(base[key].float().norm()), float((s * (B @ A)).norm())
        factors[f"base_model.model.{key.removesuffix('.weight')}.lora_B.weight"] *= wanted / norm if norm else 1.0
    _save(factors, case, family)


def _save(factors: dict[str, Tensor], case: Case, family: str) -> None:
    save_file(factors, case.adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    expected_deltas(case, conv=family == "gpt2")


def _site(case: Case, role: Role, kind: str, key: str, other: str) -> Site:
    base, sound = ({name: t for held in read(path).values() for name, t in held.items()} for path in (case.base, case.merged))
    flip = key in case.deltas and case.deltas[key][3]
    W, merged, beside = (tensor.T.contiguous() if flip else tensor for tensor in (base[key], sound[key], base[other]))
    none = torch.zeros(1, 1), torch.zeros(1, 1), 0.0
    A, B, scaling = case.deltas[key][:3] if key in case.deltas else none
    others = case.deltas[other][:2] if other in case.deltas else none[:2]
    return Site(role, kind, key, W, merged, A, B, scaling, beside, others)


def spoiled(case: Case, room: Path) -> Case:
    """The same case with copies of its own, to be spoiled."""
    copy = Case(case.base, room / "adapter", room / "merged", case.deltas, case.replaced)
    shutil.copytree(case.adapter, copy.adapter)
    shutil.copytree(case.merged, copy.merged)
    return copy


def own_base(case: Case) -> None:
    """Gives a spoiled case a base of its own, to be spoiled too."""
    case.base = Path(shutil.copytree(case.base, case.merged.parent / "base"))
