"""What an adapter can ask for: PEFT's own options per feature, or the reason why a feature does not apply to a family."""

from collections.abc import Callable, Mapping
from typing import Any

from tests.matrix.families import Family

Options = dict[str, Any]
Feature = Callable[[Family], Options | None]  # None: the family has nothing that the feature could adapt


def _linear(**more: Any) -> Feature:
    return lambda family: {"target_modules": list(family.linear), **more}


def _where(needed: str, options: Feature) -> Feature:
    return lambda family: options(family) if getattr(family, needed) else None


def _embedding_and_head(**more: Any) -> Feature:
    def options(family: Family) -> Options | None:
        return {"target_modules": [family.embedding, family.lm_head], **more} if family.embedding and family.lm_head else None

    return options


FEATURES: Mapping[str, Feature] = {
    "lora": _linear(),
    "rslora": _linear(use_rslora=True),
    "patterns": lambda f: {"target_modules": list(f.linear), "rank_pattern": {f.linear[0]: 2}, "alpha_pattern": {f.linear[1]: 32}},
    "some_layers": lambda f: {"target_modules": list(f.linear), "layers_to_transform": [0]} if f.task == "CAUSAL_LM" else None,
    "excluded": lambda f: {"target_modules": list(f.linear), "exclude_modules": [f.linear[0]]},
    "dora": _linear(use_dora=True),
    "bias_all": _where("biased", _linear(bias="all")),
    "bias_lora_only": _where("biased", _linear(bias="lora_only")),
    "lora_bias": _where("biased", lambda f: {"target_modules": [f.linear[0]], "lora_bias": True}),
    "modules_to_save": lambda f: {"target_modules": list(f.linear), "modules_to_save": [f.saved]},
    "embedding": _where("embedding", lambda f: {"target_modules": [f.linear[0], f.embedding]}),
    "embedding_dora": _where("embedding", lambda f: {"target_modules": [f.linear[0], f.embedding], "use_dora": True}),
    "head": _where("lm_head", lambda f: {"target_modules": [f.linear[0], f.lm_head]}),
    "embedding_and_head": _embedding_and_head(),
    "tied_alike": _embedding_and_head(ensure_weight_tying=True),
    "saved_embedding": _where("embedding", lambda f: {"target_modules": list(f.linear), "modules_to_save": [f.embedding]}),
    "saved_head": _where("lm_head", lambda f: {"target_modules": list(f.linear), "modules_to_save": [f.lm_head]}),
    "saved_alike": _where(
        "lm_head", lambda f: {"target_modules": list(f.linear), "modules_to_save": [f.embedding], "ensure_weight_tying": True}
    ),
    "token_rows": _where("embedding", lambda f: {"target_modules": list(f.linear), "trainable_token_indices": {f.embedding: [3, 7, 41]}}),
    "experts": _where("experts", lambda f: {"target_modules": [f.linear[0]], "target_parameters": list(f.experts)}),
    "experts_alone": _where("experts", lambda f: {"target_modules": [], "target_parameters": [f.experts[1]]}),
    "router": _where("router", lambda f: {"target_modules": [f.linear[0], f.router]}),
    "convolution": _where("convolution", lambda f: {"target_modules": list(f.convolution)}),
    "convolution_dora": _where("convolution", lambda f: {"target_modules": list(f.convolution), "use_dora": True}),
    "replicated_layers": _where("replicated", _linear(layer_replication=[[0, 2], [1, 2]])),
    "attention_module": lambda f: {"target_modules": ["head.attention"]} if "Siglip" in f.build.__code__.co_names[1] else None,
}
