"""What the libraries say when they load, without loading: the same as when they really do, and a failure only where the merge is worse."""

import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from certify.expect.loading import adapter_loading, adapter_report, checkpoint_report, loading
from certify.finding import Outcome
from certify.inputs.adapter import open_adapter
from certify.inputs.checkpoint import open_checkpoint
from exam.cases import Case, build, edit, read, write

FAMILIES = ("llama", "qwen2", "gpt2", "mixtral", "deepseek")


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return {name: build(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


def spoiled(case: Case, room: Path, change: Callable[[str, Tensor], Tensor | None]) -> Path:
    shutil.copytree(case.merged, room / "merged")
    edit(room / "merged", change)
    return room / "merged"


def asked(case: Case, merged: Path | None = None) -> Any:
    return loading(open_checkpoint(case.base), open_checkpoint(merged or case.merged))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_report_is_that_of_a_real_load(cases: dict[str, Case], family: str) -> None:
    base = cases[family].base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, real = transformers.AutoModelForCausalLM.from_pretrained(base, output_loading_info=True)
    report = checkpoint_report(open_checkpoint(base))
    assert (report.initialised, report.unexpected) == (real["missing_keys"], real["unexpected_keys"])
    assert (report.reshaped, report.refused) == (set(), "")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sound_merge_loads_as_its_base(cases: dict[str, Case], family: str) -> None:
    found = asked(cases[family])
    assert found.outcome is Outcome.PASSED
    told = "transformers does not load 17 keys (model.layers.3.* ×17), of base and merged alike" if family == "deepseek" else ""
    assert found.sentence == told


def test_a_lost_tensor_would_be_made_up(cases: dict[str, Case], tmp_path: Path) -> None:
    merged = spoiled(cases["llama"], tmp_path, lambda key, tensor: None if key == "model.norm.weight" else tensor)
    found = asked(cases["llama"], merged)
    assert found.outcome is Outcome.FAILED
    assert found.sentence == "transformers would initialise 1 key (model.norm.weight) anew, which it loads from the base"
    assert found.figures["initialised"] == 1


@pytest.mark.parametrize("family", ["mixtral", "deepseek"])
def test_a_lost_expert_spoils_the_fused_parameter(cases: dict[str, Case], tmp_path: Path, family: str) -> None:
    lost = "layers.1.block_sparse_moe.experts.2.w3" if family == "mixtral" else "layers.1.mlp.experts.2.up_proj"
    merged = spoiled(cases[family], tmp_path, lambda key, tensor: None if lost in key else tensor)
    found = asked(cases[family], merged)
    assert found.outcome is Outcome.FAILED
    assert "model.layers.1.mlp.experts.gate_up_proj" in found.sentence
    assert found.sentence.endswith("so that it refuses to load")


def test_a_tied_head_may_be_absent_and_an_untied_one_may_not(cases: dict[str, Case], tmp_path: Path) -> None:
    assert asked(cases["qwen2"]).figures["initialised"] == 0
    merged = spoiled(cases["llama"], tmp_path, lambda key, tensor: None if key == "lm_head.weight" else tensor)
    assert "1 key (lm_head.weight) anew" in asked(cases["llama"], merged).sentence


@pytest.mark.parametrize("width", [16, 64])
def test_another_shape(cases: dict[str, Case], tmp_path: Path, width: int) -> None:
    def change(key: str, tensor: Tensor) -> Tensor:
        return torch.zeros(width).bfloat16() if key == "model.norm.weight" else tensor

    found = asked(cases["llama"], spoiled(cases["llama"], tmp_path, change))
    assert "1 key (model.norm.weight) of another shape than the model's; so that it refuses to load" in found.sentence


def test_a_tensor_without_a_place(cases: dict[str, Case], tmp_path: Path) -> None:
    merged = spoiled(cases["llama"], tmp_path, lambda _, tensor: tensor)
    shards = read(merged)
    first = next(iter(shards))
    write(merged, shards | {first: shards[first] | {"model.layers.0.extra.weight": torch.zeros(3)}})
    found = asked(cases["llama"], merged)
    assert found.outcome is Outcome.FAILED
    assert found.sentence == "transformers has no place for 1 key (model.layers.0.extra.weight)"


def test_architectures_that_cannot_be_built(cases: dict[str, Case], tmp_path: Path) -> None:
    merged = spoiled(cases["llama"], tmp_path, lambda _, tensor: tensor)
    (merged / "config.json").write_text('{"architectures": ["Nobody"]}')
    assert asked(cases["llama"], merged).outcome is Outcome.FAILED
    unknown = loading(open_checkpoint(merged), open_checkpoint(cases["llama"].merged))
    assert unknown.outcome is Outcome.UNDECIDED


def test_a_loader_that_cannot_be_asked_is_no_pass(cases: dict[str, Case], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AttributeError("another version")

    monkeypatch.setattr(transformers.PreTrainedModel, "_load_pretrained_model", broken)
    assert asked(cases["llama"]).outcome is Outcome.NOT_INTERPRETED


def test_what_the_base_lacks_itself_is_told_and_not_counted(cases: dict[str, Case], tmp_path: Path) -> None:
    short = spoiled(cases["llama"], tmp_path, lambda key, tensor: None if key == "model.norm.weight" else tensor)
    found = loading(open_checkpoint(short), open_checkpoint(short))
    assert found.outcome is Outcome.PASSED
    assert found.sentence == "transformers initialises 1 key (model.norm.weight) anew, in base and merged alike"


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_s_report_is_that_of_a_real_load(cases: dict[str, Case], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import peft

    case, seen = cases[family], []
    load = peft.peft_model.set_peft_model_state_dict
    monkeypatch.setattr(peft.peft_model, "set_peft_model_state_dict", lambda *a, **k: seen.append(load(*a, **k)) or seen[-1])
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        model = transformers.AutoModelForCausalLM.from_pretrained(case.base)
        peft.PeftModel.from_pretrained(model, case.adapter)
    report = adapter_report(open_checkpoint(case.base), open_adapter(case.adapter))
    assert report.refused == ""
    assert report.unexpected == set(seen[0].unexpected_keys)
    assert report.initialised == {key for key in seen[0].missing_keys if ".default" in key}
    said = [str(warning.message) for warning in raised]
    assert set(report.said) <= set(said)
    assert any("Found missing adapter keys" in message for message in said) == bool(report.initialised)


def test_what_peft_drops_is_told_and_is_no_failure(cases: dict[str, Case]) -> None:
    """PEFT loses the dense MLP of a ColossalAI adapter while it fuses the experts; the ledger demands it all the same."""
    case = cases["deepseek"]
    found = adapter_loading(open_checkpoint(case.base), open_adapter(case.adapter))
    assert found.outcome is Outcome.PASSED
    assert found.figures == {"missing": 0, "dropped": 18}
    assert found.sentence.startswith("PEFT drops 18 keys (model.layers.0.* ×6, model.layers.1.* ×6, model.layers.2.* ×6); warning: ")


def test_peft_is_not_asked_about_what_the_gate_does_not_interpret(cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases["llama"]
    shutil.copytree(case.adapter, tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "NOBODY"}')
    found = adapter_loading(open_checkpoint(case.base), open_adapter(tmp_path / "adapter"))
    assert found.outcome is Outcome.PASSED
    assert found.sentence.startswith("PEFT is not asked: ")


def test_the_libraries_are_left_as_they_were(cases: dict[str, Case], capfd: pytest.CaptureFixture[str]) -> None:
    library, names = transformers.utils.logging, logging.getLogger("transformers")
    before = library.get_verbosity(), library.is_progress_bar_enabled(), list(names.handlers)
    asked(cases["deepseek"])
    assert (library.get_verbosity(), library.is_progress_bar_enabled(), list(names.handlers)) == before
    assert capfd.readouterr() == ("", "")
