"""Every adapter that cannot be merged is refused by name, with what to do instead, before a byte is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

import merge
from merge.adapters import config, refused
from merge.errors import AdapterError, MergeError
from tests.matrix import trial
from tests.matrix.families import FAMILIES

PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
Tensors = dict[str, torch.Tensor]


@pytest.mark.parametrize("kind", [*refused.PROMPTS, *refused.ROUTED, "LOHA", "VERA", None])
def test_other_methods(kind: str | None) -> None:
    with pytest.raises(AdapterError, match=r"this version merges LORA\. (It learned virtual|It routes|Merge it with PEFT)") as refusal:
        config.read({**PLAIN, "peft_type": kind})
    assert str(kind) in str(refusal.value)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "corda", "lora_ga", "loftq", "mica"])
def test_initialisations_that_changed_the_base(init: str) -> None:
    with pytest.raises(AdapterError, match=rf"init_lora_weights = '{init}'(.|\n)*This initialisation (took|was trained|is not)"):
        config.read({**PLAIN, "init_lora_weights": init})


@pytest.mark.parametrize("field", refused.FIELDS)
def test_variants_that_are_not_merged(field: str) -> None:
    with pytest.raises(AdapterError) as refusal:
        config.read({**PLAIN, field: {"x": 1}})
    assert refused.FIELDS[field] in str(refusal.value)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def saved(room: Path, folder: Path, family: str, **options: Any) -> Path:
    """A real adapter."""
    live = trial.trained(trial.load(trial.make_base(family, room)), options, FAMILIES[family], seed=len(folder.name))
    with trial.quiet():
        live.save_pretrained(folder)
    return folder


def edited(folder: Path, change: Callable[[Tensors, dict[str, Any]], object]) -> Path:
    tensors, settings = load_file(folder / "adapter_model.safetensors"), json.loads((folder / "adapter_config.json").read_text())
    change(tensors, settings)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def without(ending: str) -> Callable[[Tensors, dict[str, Any]], None]:
    def change(tensors: Tensors, _: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.endswith(ending)]:
            del tensors[name]

    return change


def setting(**fields: Any) -> Callable[[Tensors, dict[str, Any]], None]:
    return lambda _, settings: settings.update(fields)


def scaled(ending: str) -> Callable[[Tensors, dict[str, Any]], None]:
    return lambda tensors, _: [value.mul_(2) for name, value in tensors.items() if name.endswith(ending)] and None


def taller(tensors: Tensors, _: dict[str, Any]) -> None:
    name = "base_model.model.lm_head.base_layer.weight"
    tensors[name] = torch.cat([tensors[name]] * 2)


BOTH = ["embed_tokens", "lm_head"]
TOKENS = {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5]}
EXPERTS = {"target_modules": [], "target_parameters": list(FAMILIES["qwen3_moe"].experts)}
CASES: dict[str, tuple[str, dict[str, Any], Callable[[Tensors, dict[str, Any]], object], str]] = {
    "magnitude dropped": (
        "llama", {"target_modules": ["q_proj"], "use_dora": True}, without("vector"), "there is no lora_magnitude_vector",
    ),
    "magnitude unsaid": ("llama", {"target_modules": ["q_proj"], "use_dora": True}, setting(use_dora=False), "of a kind that this version"),
    "bias unsaid": (
        "qwen2", {"target_modules": ["q_proj"], "bias": "all"}, setting(bias="none"), "of a kind that this version does not merge",
    ),
    "bias lost": ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}, without("k_proj.bias"), "have no tensors in the adapter"),
    "bias on a layer without one": ("llama", {"target_modules": ["q_proj"], "lora_bias": True}, setting(), "no place in the base"),
    "added bias lost": ("opt", {"target_modules": ["q_proj"], "lora_bias": True}, without("lora_B.bias"), "no lora_B.bias"),
    "token rows lost": (
        "llama", TOKENS, setting(trainable_token_indices=[1]), "names 1 rows for it",
    ),
    "token row beyond": (
        "llama", TOKENS, setting(trainable_token_indices=[1, 500]), "rows up to 500",
    ),
    "token row twice": (
        "llama", TOKENS, setting(trainable_token_indices=[5, 5]), "a row twice",
    ),
    "experts of one parameter lost": ("qwen3_moe", EXPERTS, without("experts.base_layer.lora_A.weight"), "no lora_A"),
    "experts of one layer lost": (
        "qwen3_moe", EXPERTS,
        lambda tensors, _: [tensors.pop(name) for name in list(tensors) if "layers.1" in name], "truncated(.|\n)*layers.1.mlp.experts",
    ),
    "experts of another number": (
        "qwen3_moe", EXPERTS,
        lambda tensors, _: tensors.update({n: v[: len(v) // 4 * 3] for n, v in tensors.items() if "lora_A" in n}), "do not hold 4 experts",
    ),
    "tied twins that differ": (
        "llama_tied", {"target_modules": BOTH, "ensure_weight_tying": True}, scaled("lm_head.lora_A.weight"), "same numbers",
    ),
    "tied twin lost": (
        "llama_tied", {"target_modules": BOTH, "ensure_weight_tying": True},
        lambda tensors, settings: (without("lm_head.lora_A.weight")(tensors, settings), without("lm_head.lora_B.weight")(tensors, settings),
                                   settings.update(target_modules=["embed_tokens"])),
        "promises a change for each of the tied weights",
    ),
    "embeddings of two heights": ("llama", {"target_modules": BOTH}, taller, "different heights|make a delta of shape"),
    "layers that the base has not": (
        "llama", {"target_modules": ["q_proj"]}, setting(layer_replication=[[0, 2], [1, 5]]), r"asks for layers \[0, 1, 2, 3, 4\]",
    ),
    "head without its body": (
        "llama", {"target_modules": ["q_proj"]}, setting(task_type="SEQ_CLS"), "score.weight(.|\n)*in modules_to_save",
    ),
    "a later PEFT's attention": (
        "siglip_vision", {"target_modules": ["head.attention"]}, setting(peft_version="0.22.0"), "once or twice is not known here",
    ),
    "convolution of another shape": (
        "vit", {"target_modules": ["projection"]},
        lambda tensors, _: tensors.update({n: v[:, :, :-1] for n, v in tensors.items() if "lora_A" in n}), "make a delta of shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_add_up(case: str, room: Path, tmp_path: Path) -> None:
    family, options, change, sentence = CASES[case]
    adapter = edited(saved(room, tmp_path / "adapter", family, **options), change) if case != "bias on a layer without one" else None
    if adapter is None:  # PEFT itself refuses to make it
        adapter = edited(
            saved(room, tmp_path / "adapter", family, target_modules=["q_proj"]),
            lambda tensors, settings: (
                tensors.update({name.replace("B.weight", "B.bias"): torch.ones(32) for name in tensors if "lora_B" in name}),
                settings.update(lora_bias=True),
            ),
        )
    with pytest.raises(MergeError, match=sentence) as refusal:
        merge.merge(trial.make_base(family, room), adapter, tmp_path / "out")
    assert refusal.value.exit_code == 3
    assert "Nothing was written." in str(refusal.value)
    assert not (tmp_path / "out").exists()


PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[float, ...], str]] = {
    "a module replaced twice": ({"modules_to_save": ["norm"]}, {"modules_to_save": ["norm"]}, (), "two contributions of which one at most"),
    "replaced and added to": (
        {"modules_to_save": ["lm_head"]}, {"target_modules": BOTH}, (), "two contributions of which",
    ),
    "DoRA and another": ({"use_dora": True}, {}, (), "cannot be combined with another adapter on the same weight"),
    "DoRA scaled": ({"use_dora": True}, {"target_modules": ["v_proj"]}, (0.5, 1.0), "which a --weight of 0.5 cannot scale"),
    "rows and deltas": (
        {"trainable_token_indices": [3]}, {"target_modules": ["q_proj", "embed_tokens"]}, (), "another adapter changes the same tensor",
    ),
    "rows scaled": ({"trainable_token_indices": [3]}, {}, (2.0, 1.0), "which a --weight of 2.0 cannot scale"),
    "layers of one of them": ({"layer_replication": [[0, 2], [1, 2]]}, {}, (), "layer_replication differs between the adapters"),
    "a weight too few": ({}, {}, (1.0,), "one finite weight each"),
    "a weight that is no number": ({}, {}, (1.0, float("nan")), "one finite weight each"),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS)
def test_adapters_that_cannot_be_combined(case: str, room: Path, tmp_path: Path) -> None:
    *both, weights, sentence = PAIRS[case]
    folders = [saved(room, tmp_path / f"adapter{n * '+'}", "llama", **({"target_modules": ["q_proj"]} | o)) for n, o in enumerate(both)]
    with pytest.raises(MergeError, match=sentence) as refusal:
        merge.merge(trial.make_base("llama", room), folders, tmp_path / "out", weights=weights)
    assert refusal.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_the_same_adapter_twice(llama: Any, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="named twice"):
        merge.merge(llama.base, [llama.adapter, llama.adapter], tmp_path / "out")


@pytest.mark.parametrize("differ", [True, False])
def test_two_tokenizers(differ: bool, llama: Any, tmp_path: Path) -> None:
    folders = [shutil.copytree(llama.adapter, tmp_path / name) for name in ("one", "other")]
    for folder in folders:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(llama.base / name, folder / name)
    if differ:
        path = folders[1] / "tokenizer.json"
        path.write_text(path.read_text().replace('"special": true', '"special": false', 1))
        with pytest.raises(MergeError, match=r"bring tokenizers that differ \(tokenizer\.json\); one checkpoint has one"):
            merge.merge(llama.base, folders, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    else:
        assert merge.merge(llama.base, folders, tmp_path / "out").side_files["tokenizer.json"] == "adapter"


def test_a_pissa_whose_flag_was_reset(room: Path, tmp_path: Path) -> None:
    """Its delta lies in the base already; the same tensors fit the residual base, which does not hold it."""
    base = trial.make_base("llama", room)
    live = trial.load(base)
    with trial.quiet():
        live = peft.get_peft_model(
            live, peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights="pissa")
        )
        live.save_pretrained(tmp_path / "adapter")
        residual = {trial.reference.bare(k): v for k, v in live.base_model.model.state_dict().items() if "lora_" not in k}
    trial.reference.saved_like(base, {name: value.contiguous() for name, value in residual.items()}, tmp_path / "residual")
    edited(tmp_path / "adapter", setting(init_lora_weights=True))
    with pytest.raises(MergeError, match=r"it looks like a PiSSA or CorDA adapter that was not converted") as refusal:
        merge.merge(base, tmp_path / "adapter", tmp_path / "out")
    assert refusal.value.exit_code == 3
    merge.merge(tmp_path / "residual", tmp_path / "adapter", tmp_path / "out")
    with torch.no_grad():
        tokens = torch.arange(3, 15)[None]
        ours = trial.load(tmp_path / "out")(tokens).logits
        assert trial.reference.distance(ours, trial.load(base)(tokens).logits) < trial.LOGITS  # untrained: the original model again


def test_a_body_that_was_random_is_not_a_base(room: Path, tmp_path: Path) -> None:
    """BertForSequenceClassification pools; a masked language model has no pooler, and what training drew for it is lost."""
    base = trial.make_base("bert_mlm", room)
    with trial.quiet():
        model = t.BertForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float32)
        live = trial.trained(model, {"target_modules": ["query"]}, FAMILIES["bert"])
        live.save_pretrained(tmp_path / "adapter")
    with pytest.raises(MergeError, match=r"2 weights are neither in the base nor in the adapter\n  bert\.pooler\.dense\.bias"):
        merge.merge(base, tmp_path / "adapter", tmp_path / "out")
