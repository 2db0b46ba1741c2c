"""C9 where layers cannot be run or compared: damage, unknown models and a gate that fails are told, each for what it is."""

import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from certify.checks import c9_layers
from certify.checks.c9_layers import LayerBehaviour
from certify.expect.ledger import Ledger, build_ledger
from certify.finding import Finding, Outcome
from certify.inputs.adapter import open_adapter
from certify.inputs.checkpoint import open_checkpoint
from certify.layers import needs
from certify.layers.forward import StoppedError
from certify.layers.weights import Weights
from tests.test_certify.layer_cases import behaviour, examine, make, sound

LLAMA_LAYER, Q = "model.layers.1", "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layers")


def failed(findings: Iterable[Finding]) -> dict[str, str]:
    """Subject → sentence."""
    return {finding.subject: finding.sentence for finding in findings if finding.outcome is Outcome.FAILED}


def test_missing_and_misshapen_tensors_fail_in_their_unit(room: Path) -> None:
    case = make("llama", 1e-1, room)
    tensors = case.sound()
    del tensors[Q]
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].clone()
    case.write(tensors)
    found = failed(examine(case))
    assert found.keys() == {LLAMA_LAYER, "lm_head"}
    assert Q in found[LLAMA_LAYER]


def test_an_unknown_architecture_is_said_to_be_unknown(room: Path, tmp_path: Path) -> None:
    case = sound("llama", 1e-1, room)
    config = tmp_path / "base" / "config.json"
    config.parent.mkdir()
    config.write_text('{"architectures": ["NobodyForCausalLM"]}')
    adapter = open_adapter(case.adapter)
    base = open_checkpoint(config.parent)
    layers = LayerBehaviour(base, open_checkpoint(case.merged), build_ledger(base, [adapter], [1.0]), [adapter], [1.0], "nearest")
    assert layers.units == (c9_layers.WHOLE,)
    (finding,) = layers.examine(c9_layers.WHOLE)
    assert finding.outcome is Outcome.NOT_INTERPRETED
    assert "NobodyForCausalLM" in finding.sentence


def test_a_forward_that_does_not_fit_is_refused_with_figures(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = behaviour(sound("llama", 1e-1, room))
    monkeypatch.setattr(needs, "available", lambda: 1 << 20)
    assert "1 MiB are free" in layers.announcement
    (finding,) = layers.examine(LLAMA_LAYER)
    assert finding.outcome is Outcome.NOT_INTERPRETED
    assert int(finding.figures["needed_bytes"] or 0) > int(finding.figures["available_bytes"] or 0)


def test_a_fault_of_the_gate_names_unit_and_tensor(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, stored = behaviour(sound("llama", 1e-1, room)), Weights._stored

    def broken(weights: Weights, key: str, rows: slice | None) -> Tensor:
        if key == Q:
            weights.reading = key
            raise RuntimeError("no such luck")
        return stored(weights, key, rows)

    monkeypatch.setattr(Weights, "_stored", broken)
    assert layers.examine("model.layers.0")[0].outcome is Outcome.PASSED
    with pytest.raises(StoppedError, match=rf"{LLAMA_LAYER}, at {Q}: RuntimeError: no such luck"):
        layers.examine(LLAMA_LAYER)


@pytest.mark.parametrize("damage", ["missing", "misshapen", "truncated"])
def test_a_damaged_base_stops_the_forward_and_is_told(damage: str, room: Path, tmp_path: Path) -> None:
    case = sound("llama", 1e-1, room)
    broken = dataclasses.replace(case, base=tmp_path / "base", merged=tmp_path / "merged")
    shutil.copytree(case.base, broken.base)
    shutil.copytree(case.merged, broken.merged)
    file, key = broken.base / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    else:
        save_file({name: W[:-1] if name == key else W for name, W in case.held.items() if name != key or damage == "misshapen"}, file)
    base, adapter = open_checkpoint(broken.base), open_adapter(case.adapter)
    layers = LayerBehaviour(base, open_checkpoint(broken.merged), build_ledger(base, [adapter], [1.0]), [adapter], [1.0], "nearest")
    found = [finding for unit in layers.units for finding in layers.examine(unit)]
    assert Outcome.NOT_INTERPRETED in {finding.outcome for finding in found}
    assert "model.layers.0" in {finding.subject for finding in found if finding.outcome is not Outcome.FAILED}


def test_a_truncated_merged_file_fails_where_it_is_read(room: Path, tmp_path: Path) -> None:
    case = dataclasses.replace(sound("llama", 1e-1, room), merged=tmp_path / "merged")
    case.write(case.sound())
    file = case.merged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    found = failed(examine(case))
    assert found
    assert all("cannot be read" in sentence or "missing" in sentence for sentence in found.values())


def test_without_an_adapter_nothing_is_expected(room: Path) -> None:
    case = sound("llama", 1e-1, room)
    layers = LayerBehaviour(open_checkpoint(case.base), open_checkpoint(case.merged), Ledger(), [], [], "nearest")
    assert [finding.outcome for unit in layers.units for finding in layers.examine(unit)] == [Outcome.NOT_INTERPRETED]
