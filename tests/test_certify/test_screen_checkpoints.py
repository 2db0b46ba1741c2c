"""The screen of whole checkpoints: advice about what looks unusual, exit 10; exit 1 only for what is wrong whatever the adapter is."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from certify.__main__ import app
from certify.checks.c3_untouched import untouched
from certify.errors import UsageError
from certify.finding import Finding, Outcome
from certify.inputs.checkpoint import open_checkpoint
from certify.screen import Screening, State, conclude, gathered, look, noted, screen
from certify.screen.ask import Answer, ask
from exam.cases import Case, build, edit, expected_deltas, make_base, merge_into, peft_adapter, read, write

Q = "model.layers.{}.self_attn.q_proj.weight"
LAYERS = 10


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Ten layers, two roles adapted, every module's delta of about the same size."""
    room = tmp_path_factory.mktemp("deep")
    case = Case(room / "base", room / "adapter", room / "merged")
    model = make_base("llama", case.base, num_hidden_layers=LAYERS, hidden_size=64)
    peft_adapter(model, case.adapter, target_modules=["q_proj", "up_proj"])
    expected_deltas(case)
    merge_into(case, case.merged)
    return case


@pytest.fixture(scope="module")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return build("deepseek", tmp_path_factory.mktemp("deepseek"))


def spoiled(case: Case, room: Path, change: Callable[[str, Tensor], Tensor | None]) -> Path:
    shutil.copytree(case.merged, room / "merged")
    edit(room / "merged", change)
    return room / "merged"


def screened(case: Case, merged: Path) -> Screening:
    return screen(open_checkpoint(case.base), open_checkpoint(merged))


def held(directory: Path) -> dict[str, Tensor]:
    return {key: tensor for tensors in read(directory).values() for key, tensor in tensors.items()}


def test_a_sound_merge_is_consistent(deep: Case) -> None:
    found = screened(deep, deep.merged)
    assert found.state is State.CONSISTENT
    assert found.findings == found.faults == ()
    assert found.figures["touched"] == found.figures["measured"] == 2 * LAYERS
    json.dumps(found.figures, allow_nan=False)
    for name, (A, B, s, _) in deep.deltas.items():
        true = float((B.double() @ A.double()).norm() * s / held(deep.base)[name].double().norm())
        assert found.figures["per_tensor"][name]["rho"] == pytest.approx(true, rel=0.05)


def test_the_base_itself_is_suspect(deep: Case) -> None:
    found = screened(deep, deep.base)
    assert found.state is State.SUSPECT
    assert found.findings == (f"nothing was merged: all {found.figures['tensors']} tensors equal the base's",)


def test_an_mtp_layer_without_adapter_is_told_as_one_group(deepseek: Case) -> None:
    found = screened(deepseek, deepseek.merged)
    assert found.state is State.SUSPECT
    assert found.findings == ("12 tensors are untouched, though most siblings changed: model.layers.3.* ×12",)


def test_an_unmerged_module_stands_out(deep: Case, tmp_path: Path) -> None:
    name, base = Q.format(4), held(deep.base)
    found = screened(deep, spoiled(deep, tmp_path, lambda key, tensor: base[key] if key == name else tensor))
    assert found.findings == (f"1 tensor is untouched, though most siblings changed: {name}",)
    assert found.figures["left_out"] == [name]


@pytest.mark.parametrize("factor", [2.0, 0.5, -2.0])
def test_a_delta_of_another_size_stands_out(deep: Case, tmp_path: Path, factor: float) -> None:
    name, base = Q.format(3), held(deep.base)
    A, B, s, _ = deep.deltas[name]

    def change(key: str, tensor: Tensor) -> Tensor:
        return (base[key].float() + factor * s * (B.float() @ A.float())).bfloat16() if key == name else tensor

    found = screened(deep, spoiled(deep, tmp_path, change))
    assert [finding.split(": ")[0] for finding in found.findings] == [name]
    assert "× the median of its nearest siblings" in found.findings[0]


def test_rows_that_were_left_out(tmp_path: Path) -> None:
    torch.manual_seed(1)
    W = {"model.layers.0.mlp.up_proj.weight": torch.randn(256, 256).bfloat16()}
    M = {key: tensor + torch.randn(256, 256).bfloat16() * 0.1 for key, tensor in W.items()}
    M["model.layers.0.mlp.up_proj.weight"][64:96] = W["model.layers.0.mlp.up_proj.weight"][64:96]
    for side, tensors in (("base", W), ("merged", M)):
        (tmp_path / side).mkdir()
        write(tmp_path / side, {"model.safetensors": tensors})
    found = screen(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "merged"))
    assert any("32 of 256 rows are untouched" in finding for finding in found.findings)


def test_faults_that_one_tensor_cannot_show_are_consistent(deep: Case, tmp_path: Path) -> None:
    """Why the screen certifies nothing: every delta of a role moved to the next layer looks as sound as before."""
    base = held(deep.base)

    def change(key: str, tensor: Tensor) -> Tensor:
        if key not in deep.deltas:
            return tensor
        layer = int(key.split(".")[2])
        A, B, s, _ = deep.deltas[key.replace(f"layers.{layer}.", f"layers.{(layer + 1) % LAYERS}.")]
        return (base[key].float() + s * (B.float() @ A.float())).bfloat16()

    assert screened(deep, spoiled(deep, tmp_path, change)).state is State.CONSISTENT


def test_the_same_from_the_figures_of_single_tensors(deep: Case) -> None:
    """The gate examines tensor by tensor, perhaps in other processes, and concludes at the end."""
    base, merged = open_checkpoint(deep.base), open_checkpoint(deep.merged)
    touches = {name: touch for name in base.tensors if (touch := look(base.tensors[name], merged.tensors[name])) is not None}
    assert conclude(base, merged, touches) == screen(base, merged)


def test_notes_in_the_findings_of_the_gate_say_the_same(deep: Case, tmp_path: Path) -> None:
    """What C3 says, with the screen's figures in it, through JSON as evidence travels; NaN becomes a failure of C4."""
    name = Q.format(0)

    def spoil(key: str, tensor: Tensor) -> Tensor:
        if key == name:
            tensor[3, 5] = torch.nan
        return tensor

    base, merged = open_checkpoint(deep.base), open_checkpoint(spoiled(deep, tmp_path, spoil))
    pairs = {key: (base.tensors[key], merged.tensors[key]) for key in base.tensors}
    findings = [noted(untouched(key, *sides), *sides) for key, sides in pairs.items()]
    travelled = [Finding.of(json.loads(json.dumps(asdict(finding)))) for finding in findings]
    assert conclude(base, merged, gathered(travelled)) == screen(base, merged)
    assert [(f.code, f.subject, f.outcome) for f in findings if f.code != "C3"] == [("C4", name, Outcome.FAILED)]


def proven(case: Case, merged: Path) -> tuple[Answer, list[str]]:
    answer = ask(case.base, merged, None, "same")
    return answer, sorted({fault.code for fault in answer.faults})


def test_what_is_proven_without_an_adapter(deep: Case, tmp_path: Path) -> None:
    name = Q.format(0)

    def spoil(key: str, tensor: Tensor) -> Tensor:
        if key == name:
            tensor[3, 5] = torch.nan
        return tensor

    faults: dict[str, tuple[str, Callable[[str, Tensor], Tensor | None]]] = {
        "nan": ("C4", spoil),
        "missing": ("C2", lambda key, tensor: None if key == name else tensor),
        "shape": ("C2", lambda key, tensor: tensor[:-1].contiguous() if key == name else tensor),
        "dtype": ("C2", lambda key, tensor: tensor.half() if key == name else tensor),
    }
    for fault, (code, change) in faults.items():
        answer, codes = proven(deep, spoiled(deep, tmp_path / fault, change))
        assert (answer.exit_code, codes) == (1, [code]), fault


def test_a_truncated_shard_is_a_fault_and_the_rest_is_screened(deep: Case, tmp_path: Path) -> None:
    shutil.copytree(deep.merged, tmp_path / "merged")
    path = sorted((tmp_path / "merged").glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-100])
    answer, codes = proven(deep, tmp_path / "merged")
    assert (answer.exit_code, codes) == (1, ["C1"])
    assert 0 < answer.screening.figures["tensors"] < len(held(deep.base))


def test_a_declared_dtype_is_no_fault(deep: Case, tmp_path: Path) -> None:
    merged = spoiled(deep, tmp_path, lambda _, tensor: tensor.float())
    assert ask(deep.base, merged, None, "same").exit_code == 1
    assert ask(deep.base, merged, None, "fp32").exit_code == 10


def test_the_command(deep: Case, tmp_path: Path) -> None:
    runner = CliRunner()
    words = ["screen", f"--base={deep.base}", f"--merged={deep.merged}"]
    told = runner.invoke(app, words)
    assert told.exit_code == 10
    assert "CONSISTENT" in told.output
    assert "model.layers.#.self_attn.q_proj.weight   10 of 10   ρ " in told.output
    assert told.output.rstrip().endswith("verdict  none: without an adapter nothing is certified")
    data = json.loads(runner.invoke(app, [*words, "--json"]).output)
    assert (data["screen"], data["exit_code"], data["faults"]) == ("CONSISTENT", 10, [])
    assert runner.invoke(app, [*words, f"--adapter={tmp_path / 'none'}"]).exit_code == 4
    assert runner.invoke(app, ["screen", f"--base={deep.base}", f"--merged={tmp_path / 'none'}"]).exit_code == 4


def test_an_empty_directory_is_not_screened(deep: Case, tmp_path: Path) -> None:
    answer = ask(deep.base, tmp_path, None, "same")
    assert answer.screening.state is State.NOT_SCREENED
    assert answer.exit_code == 1
    assert answer.text()
    with pytest.raises(UsageError):
        ask(deep.base, tmp_path / "none", None, "same")
