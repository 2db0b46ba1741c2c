"""A judgement of DeepSeek-V3's 91,991 tensors without its 688 GB: real names, tiny files, made-up findings, the real certificate.

Files hold the real names with one element each. What the checks would have found is made up by `Story`; verdict, statement and report are
the gate's own.
"""

import json
import math
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from certify.examination import Examination
from certify.expect.ledger import Ledger
from certify.finding import Figure, Finding, Outcome
from certify.overview.names import place
from certify.request import Request
from certify.verdict import Certificate
from merge.catalog import compose
from merge.proxies import families

LAYERS, EXPERTS, SHARDS = 61, 256, 163
ADAPTED = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG = {"num_hidden_layers": LAYERS, "n_routed_experts": EXPERTS, "n_group": 8, "topk_group": 4, "first_k_dense_replace": 3}
SIDE_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "modeling_deepseek.py")


def inventory() -> list[str]:
    """Every tensor of the published checkpoint; each projection has its scales beside it, since it is stored in 8 bits."""
    names = [name for name, _, _ in families._deepseek_tensors({**families.DEEPSEEK, **families.DEEP, **CONFIG})]
    scaled = [name for name in names if "proj" in name and "eh_proj" not in name]
    return sorted([*names, *(f"{name}_scale_inv" for name in scaled)], key=_disk_order)


def adapted(name: str) -> bool:
    """The adapter is on attention and on every expert, the MTP layer's aside."""
    layer = place(name).layer
    return name.endswith(".weight") and layer is not None and layer < LAYERS and name.split(".")[-2] in ADAPTED


class Story:
    """What the checks find: sound until a fault is planted.

    found   subject → findings      gone, new  names that the merged checkpoint lacks, and has too many
    """

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.names = inventory()
        self.touched = {name for name in self.names if adapted(name)}
        self.gone: set[str] = set()
        self.new: set[str] = set()
        self.shards = [f"model-{number + 1:05d}-of-{SHARDS:06d}.safetensors" for number in range(SHARDS)]
        self.found: dict[str, list[Finding]] = {name: [Finding("C1", name, Outcome.PASSED)] for name in self.shards}
        self.found |= {name: [Finding("C7", name, Outcome.PASSED)] for name in SIDE_FILES}
        self.found |= {name: list(self._sound(name)) for name in self.names}
        self.found |= {f"model.layers.{layer}": [self._layer(layer)] for layer in range(LAYERS + 1)}
        accounts = {"tensors": 2 * len(self.touched), "consumed": 2 * len(self.touched)}
        armed = {"armed": 9, "planted": 9, "not_armable": ""}
        self.found["adapter"] = [Finding("C4", "adapter", Outcome.PASSED, figures=accounts)]
        self.found["self-check: formula"] = [Finding("C6", "self-check: formula", Outcome.PASSED, figures={"hypothesis_examples": 300})]
        self.found["self-check: power"] = [Finding("C6", "self-check: power", Outcome.PASSED, figures=armed)]

    def _sound(self, name: str) -> Iterator[Finding]:
        yield Finding("C2", name, Outcome.PASSED)
        if name not in self.touched:
            yield Finding("C3", name, Outcome.PASSED)
            return
        depth = (place(name).layer or 0) / LAYERS
        kept = 0.97 - 0.05 * depth + self.chance.gauss(0, 0.006)
        yield Finding("C4", name, Outcome.PASSED, figures=self.figures(name, kept, 0.95 + 0.05 * self.chance.random()))
        decided = self.chance.random() > 0.001
        yield Finding("C5", name, Outcome.PASSED if decided else Outcome.UNDECIDED, "" if decided else "the base alone would pass")
        yield Finding("C8", name, Outcome.PASSED, figures=self.fidelity(kept))

    def figures(self, name: str, kept: float, ratio: float) -> dict[str, Figure]:
        """What C4 measures of one tensor."""
        elements = 7168 * (2048 if "experts" in name else 1536)
        return {"elements": elements, "beyond": 0, "changed": elements // 2, "ratio": ratio, **self.fidelity(kept)}

    def fidelity(self, kept: float) -> dict[str, Figure]:
        """What C8 measures of one tensor."""
        noise = abs(1 - kept) + 0.08
        return {"retention": kept, "error_energy": noise, "subspace_error": noise / 6, "delta_norm": 1 + self.chance.random()}

    def _layer(self, layer: int) -> Finding:
        if layer == LAYERS:
            return Finding("C9", f"model.layers.{layer}", Outcome.PASSED, figures={"live": 0})
        base = 0.012 * math.exp(0.025 * layer) * (1 + 0.1 * self.chance.random())
        merged = base / 9 * (1 + 0.1 * self.chance.random())
        figures = {"err_merged": merged, "err_base": base, "err_rounding": merged * 0.98, "K": 1.02, "K_max": 1.6}
        return Finding("C9", f"model.layers.{layer}", Outcome.PASSED, figures=figures)


def certificate(story: Story, room: Path) -> Certificate:
    """The gate's certificate over that story; files in `room`."""
    make(room / "DeepSeek-V3", story.names, story)
    make(room / "DeepSeek-V3-merged", [name for name in [*story.names, *sorted(story.new)] if name not in story.gone], story)
    (room / "adapter").mkdir()
    pairs = [f"base_model.model.{name.removesuffix('.weight')}.lora_{side}.weight" for name in sorted(story.touched) for side in "AB"]
    sparse(room / "adapter" / "adapter_model.safetensors", pairs)
    (room / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "deepseek-ai/DeepSeek-V3", "peft_type": "LORA"}')
    examination = Examination(Request(room / "DeepSeek-V3", room / "DeepSeek-V3-merged", (room / "adapter",)))
    examination.ledger = Ledger(dict.fromkeys(story.touched, ()), complete=True, tensors=(len(pairs),), consumed=(len(pairs),))
    examination.expected = len(story.found)
    findings = [finding for found in story.found.values() for finding in found]
    return examination.certificate(findings, run=len(story.found))


def make(directory: Path, names: list[str], story: Story) -> None:
    """A checkpoint of these names, one element each, in as many shards as the published one."""
    directory.mkdir()
    weight_map = {}
    for number, shard in enumerate(story.shards):
        held = names[number * len(names) // SHARDS : (number + 1) * len(names) // SHARDS]
        sparse(directory / shard, held)
        weight_map |= dict.fromkeys(held, shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in SIDE_FILES:
        (directory / name).write_text(json.dumps({**families.DEEPSEEK, **families.DEEP, **CONFIG}) if name == "config.json" else "{}")


def sparse(path: Path, names: Iterable[str]) -> None:
    """A safetensors file whose numbers are a hole."""
    catalog = compose(path.name, [(name, "BF16", (1, 1)) for name in names], {"format": "pt"})
    with path.open("wb") as stream:
        stream.write(catalog.header)
        stream.truncate(catalog.size)


def _disk_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    layer = place(name).layer
    return -1 if layer is None else layer, [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split(".")]
