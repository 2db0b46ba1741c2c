"""What is refused by name, each with what to do instead."""

from collections.abc import Mapping
from typing import Any

from merge.errors import NOTHING_WRITTEN, AdapterError

PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT")
ROUTED = ("XLORA", "POLY", "LILY", "SHADOW")
CONVERT = (
    "Convert it where it was trained: save_pretrained(…, path_initial_model_for_weight_conversion=…), then merge into the original base."
)
INITS = {  # facts of each: what training did to the base, so that base + B·A is not the trained model
    "pissa": f"took its first singular directions out of the base. {CONVERT}",
    "olora": f"took a QR part out of the base. {CONVERT}",
    "corda": f"took its context directions out of the base. {CONVERT}",
    "lora_ga": f"took its first gradient step out of the base. {CONVERT}",
    "loftq": "was trained on a quantised base that holds a correction. Dequantise that very base, and merge where it was trained.",
    "mica": "is not merged yet. Merge it with PEFT, then certify the result.",
}
FIELDS = {
    "alora_invocation_tokens": "An activated LoRA acts only behind its invocation tokens: no weight can do that. Serve it unmerged.",
    "arrow_config": "Arrow routes between adapters for every token: no weight can do that. Serve it unmerged.",
    "use_qalora": "QALoRA changes a quantiser's zero points. Merge it with the tool that trained it.",
    "kasa_config": "KaSA cuts the base's small singular values first. Merge it with PEFT, then certify the result.",
    "use_bdlora": "Block-diagonal LoRA is not merged yet. Merge it with PEFT, then certify the result.",
    "velora_config": "VeLoRA's extra tensors are not read yet. Merge it with PEFT, then certify the result.",
    "monteclora_config": "MonteCLoRA's extra tensors are not read yet. Merge it with PEFT, then certify the result.",
}
OTHERWISE = "Merge such an adapter with the tool that trained it, or retrain without the feature."


def refuse_other_methods(config: Mapping[str, Any]) -> None:
    """Raises AdapterError for every method but LoRA, saying what can be done with it."""
    kind = config.get("peft_type")
    if kind == "LORA":
        return
    if kind in PROMPTS:
        instead = "It learned virtual tokens, not weights: there is nothing to merge. Serve it unmerged."
    elif kind in ROUTED:
        instead = "It routes between adapters at run time: no weight can do that. Serve it unmerged."
    else:
        instead = "Merge it with PEFT (merge_and_unload), then certify the result."
    raise AdapterError(f"adapter_config.json: peft_type is {kind!r}; this version merges LORA. {instead} {NOTHING_WRITTEN}")


def advice(config: Mapping[str, Any]) -> str:
    """What to do instead, for the first refused field that has a known way out."""
    init = str(config.get("init_lora_weights")).lower()
    found = next((text for name, text in INITS.items() if init.startswith(name)), None)
    if found:
        return f"This initialisation {found}"
    return next((text for name, text in FIELDS.items() if config.get(name)), OTHERWISE)


def reasons() -> Mapping[str, str]:
    """Everything that is refused whatever the family, with what to do instead."""
    prompts = dict.fromkeys(PROMPTS, "It learned virtual tokens, not weights: there is nothing to merge. Serve it unmerged.")
    routed = dict.fromkeys(ROUTED, "It routes between adapters at run time: no weight can do that. Serve it unmerged.")
    inits = {f"init_lora_weights={name}": f"It {text}" for name, text in INITS.items()}
    return prompts | routed | inits | FIELDS
