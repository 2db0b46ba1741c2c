"""What every cell needs: a base and an adapter made by transformers and PEFT, and a merged checkpoint held against the trained model."""

import functools
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors.torch import save_file

from tests import reference
from tests.matrix.families import FAMILIES, Family, inputs

RANK, ALPHA = 4, 8
SIGMA = 0.1  # of weights and factors
LOGITS = 1e-5  # relative, of two float32 forwards whose weights differ by their last bits


def make_base(family: str, room: Path) -> Path:
    """A checkpoint by transformers' own save_pretrained; made once per room."""
    base = room / family
    if not base.exists():
        with quiet():
            torch.manual_seed(7)
            model = FAMILIES[family].build()
            with torch.no_grad():
                for name, value in model.named_parameters():
                    value.copy_(torch.randn(value.shape) * SIGMA + (1.0 if "norm" in name.lower() and value.dim() == 1 else 0.0))
            model.save_pretrained(base)
    return base


def made(build: Callable[[], Any], base: Path) -> Path:
    """A checkpoint of whatever model is built, with random weights; as it is where one is there."""
    if not base.exists():
        with quiet():
            torch.manual_seed(1)
            model = build()
            with torch.no_grad():
                for value in model.parameters():
                    value.copy_(torch.randn(value.shape) * 0.1)
            model.save_pretrained(base)
    return base


def trained(model: Any, options: dict[str, Any], family: Family, seed: int = 3) -> Any:
    """A live PEFT model whose every trainable number was moved."""
    terms = {"r": RANK, "lora_alpha": ALPHA, "task_type": family.task} | options
    with quiet(), torch.no_grad():
        live = peft.get_peft_model(model, peft.LoraConfig(**terms))
        torch.manual_seed(seed)
        for name, value in live.named_parameters():
            if "lora_magnitude" in name:
                value.mul_(1 + 0.2 * torch.rand(value.shape))
            elif value.requires_grad:
                value.add_(torch.randn(value.shape) * SIGMA)
        if terms.get("ensure_weight_tying"):
            _tie(live)
    return live.eval()


def _tie(live: Any) -> None:
    """What training keeps equal, and the noise above has not."""
    embedding, head = live.base_model.model.get_input_embeddings(), live.base_model.model.get_output_embeddings()
    if not hasattr(head, "lora_A"):
        return
    head.lora_A["default"].weight.copy_(embedding.lora_embedding_B["default"].T)
    head.lora_B["default"].weight.copy_(embedding.lora_embedding_A["default"].T)


def judged(family: Family, live: Any, base: Path, merged: Path) -> str:
    """The merged checkpoint is what was trained: every parameter, every untouched byte, the outputs."""
    with quiet():
        model, report = load(merged, report=True)
    assert not report["missing_keys"] and not report["mismatched_keys"], report  # noqa: PT018
    values, slack = reference.trained(live)
    got, plain = model.state_dict(), load(base)
    assert got.keys() == values.keys(), sorted(got.keys() ^ values.keys())
    for name, value in got.items():
        distance = (value.double() - values[name]).abs()
        assert bool((distance <= slack[name] + 1e-45).all()), f"{name}: off by {float(distance.max()):.2e}"
    if plain.all_tied_weights_keys.keys() & (reference.weights(merged).keys() - reference.weights(base).keys()):
        said = json.loads((merged / "config.json").read_text())["tie_word_embeddings"]  # some loaders believe it against the files
        assert said is False, "two tensors, and the configuration ties them"
    changed = _carried(base, merged, plain.state_dict(), got)
    with torch.no_grad(), quiet():
        wanted = live.base_model.model(**inputs(family.inputs))[0]
        alone, ours = (m.eval()(**inputs(family.inputs))[0] for m in (plain, model))
    far = reference.distance(ours, wanted)
    effect = f"{reference.distance(alone, wanted):.0e}" if alone.shape == wanted.shape else "of another shape"
    assert far <= LOGITS, f"outputs differ by {far:.1e}"
    return f"{changed} tensors changed; outputs {far:.0e} from base + unmerged adapter; the base alone: {effect}"


def _carried(base: Path, merged: Path, old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> int:
    """Every disk tensor that fills no changed parameter is the base's, byte for byte; the number of the others."""
    before, after = reference.weights(base), reference.weights(merged)
    changed = {name for name, value in new.items() if name not in old or not torch.equal(value, old[name])}
    if before.keys() - after.keys() or any(before[name].shape != after[name].shape for name in before):  # other layers, other rows
        return len(changed)
    touched = 0
    for key, parameters in _fillers(base).items():
        assert before[key].dtype == after[key].dtype, key
        if not parameters & changed:
            assert torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8)), key
        touched += bool(parameters & changed)
    assert after.keys() - before.keys() <= new.keys(), sorted(after.keys() - before.keys())
    return touched


@functools.cache
def _fillers(base: Path) -> dict[str, set[str]]:
    """Disk key → the parameters that it fills, found by marking: every tensor holds a number of its own, and the loader is watched."""
    marked = base.with_name(f"{base.name}-marked")
    keys = sorted(reference.weights(base))
    reference.saved_like(base, {key: torch.full_like(reference.weights(base)[key], n + 1) for n, key in enumerate(keys)}, marked)
    found: dict[str, set[str]] = {key: set() for key in keys}
    for name, value in load(marked).state_dict().items():
        for number in value.unique().tolist():
            if float(number).is_integer() and 1 <= number <= len(keys):
                found[keys[int(number) - 1]].add(name)
    return found


def load(folder: Path, *, report: bool = False) -> Any:
    """The model of a checkpoint in float32, by the class that its configuration names."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    with quiet():
        return getattr(transformers, name).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=report
        )


def write_disk_adapter(folder: Path, shapes: dict[str, tuple[int, ...]], targets: list[str], *, prefix: str = "base_model.model.") -> None:
    """A pair per module, seeded."""
    torch.manual_seed(4)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        tensors[f"{prefix}{module}.lora_A.weight"] = torch.randn(RANK, columns) * SIGMA
        tensors[f"{prefix}{module}.lora_B.weight"] = torch.randn(rows, RANK) * SIGMA
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": targets, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@contextmanager
def quiet() -> Iterator[None]:
    """transformers and PEFT warn about tiny models; what they say is no evidence."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
