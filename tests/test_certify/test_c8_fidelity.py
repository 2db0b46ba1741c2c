"""A right rounding may still lose the fine-tune: how much is kept, measured as published, and refused where too little is left."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import certify
from certify import report
from certify.bounds import Delta
from certify.checks import c8_fidelity
from certify.expect.place import Orientation
from certify.fidelity import Fidelity
from certify.finding import Finding, Outcome
from certify.grid import Grid
from certify.verdict import Verdict
from exam import cases
from exam.cases import Case

QUIET = "model.layers.0.self_attn.q_proj.weight"
PUBLISHED = {1e-2: (1.000, 0.17, 0.021), 3e-3: (0.925, 0.48, 0.103), 1e-3: (0.532, 0.79, 0.481), 3e-4: (0.181, 0.94, 0.822)}


def setting(rho: float, rows: int = 1024, columns: int = 1024, rank: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """W (out, in) bf16, A, B with ‖BA‖ = rho·‖W‖."""
    torch.manual_seed(seed)
    W, A, B = (torch.randn(rows, columns) * 0.02).bfloat16(), torch.randn(rank, columns), torch.randn(rows, rank)
    return W, A, B * (rho * W.float().norm() / (B @ A).norm())


def folded(W: Tensor, A: Tensor, B: Tensor, M: Tensor, orientation: Orientation = "out,in", *, noisy: bool = False) -> Fidelity:
    """All of a tensor, in blocks of 100 rows as it is stored."""
    left, right = (B, A) if orientation == "out,in" else (A.T, B.T)
    W, M = (W, M) if orientation == "out,in" else (W.T, M.T)
    sums = Fidelity.of([Delta(left, right, 1.0, torch.float32)], orientation, noisy=noisy)
    for row in range(0, len(W), 100):
        ours, delta = W[row : row + 100].float(), left[row : row + 100] @ right
        sums.fold(row, (M[row : row + 100].float() - ours).contiguous(), delta, ours + delta, Grid(M.dtype))
    return sums


@pytest.mark.parametrize("rho", PUBLISHED)
def test_nearest_keeps_what_was_published(rho: float) -> None:
    W, A, B = setting(rho)
    figures = folded(W, A, B, (W.float() + B @ A).bfloat16()).figures()
    got = figures["retention"], figures["error_energy"], figures["subspace_error"]
    assert got == pytest.approx(PUBLISHED[rho], abs=0.02)


@pytest.mark.parametrize("rank", [1, 4, 40])
def test_orientation_and_blocks_do_not_matter(rank: int) -> None:
    """The figures of a Conv1D are those of the Linear that it is, and those of the definition in float64."""
    W, A, B = setting(1e-3, 130, 210, rank)
    A[-1] = A[0]  # Q spans rank − 1 directions
    B = B * (1e-3 * W.float().norm() / (B @ A).norm())
    M = (W.float() + B @ A).bfloat16()
    one, other = (folded(W, A, B, M, orientation).figures() for orientation in ("out,in", "in,out"))
    assert one == pytest.approx(other, rel=1e-4)
    delta, stored = B.double() @ A.double(), M.double() - W.double()
    Q = torch.linalg.svd(A.double(), full_matrices=False)[2][: max(1, rank - 1)].T
    assert one["retention"] == pytest.approx(float((stored * delta).sum() / delta.square().sum()), rel=1e-4)
    assert one["error_energy"] == pytest.approx(float((stored - delta).norm() / delta.norm()), rel=1e-4)
    assert one["subspace_error"] == pytest.approx(float(((stored - delta) @ Q).norm() / (delta @ Q).norm()), rel=1e-3)


@pytest.mark.parametrize("rho", [1e-1, 1e-3, 1e-4])
def test_sigma_is_the_spread_of_unbiased_rounding(rho: float) -> None:
    """σ against 60 stochastic roundings of one small tensor."""
    W, A, B = setting(rho, 48, 48, 4)
    value = W.double() + B.double() @ A.double()
    near = value.bfloat16()
    step = torch.where(near.double() > value, -torch.inf, torch.inf).bfloat16()
    other = torch.nextafter(near, step)
    up = ((value - near.double()) / (other.double() - near.double())).clamp(0, 1)
    kept = torch.tensor([folded(W, A, B, torch.where(torch.rand_like(up) < up, other, near)).figures()["retention"] for _ in range(60)])
    sigma = folded(W, A, B, near, noisy=True).figures()["sigma"]
    assert isinstance(sigma, float)
    assert abs(float(kept.mean()) - 1) < 4 * sigma / 60**0.5
    assert 0.7 < float(kept.std()) / sigma < 1.4


def small(case: Case, root: Path, factor: float, how: cases.Merge = cases.single) -> Case:
    """The same case with B · factor, and a sound merge of that."""
    made = Case(case.base, root / "adapter", root / "merged")
    shutil.copytree(case.adapter, made.adapter)
    path = made.adapter / "adapter_model.safetensors"
    save_file({key: tensor * factor if "lora_B" in key else tensor for key, tensor in load_file(path).items()}, path)
    cases.expected_deltas(made)
    cases.merge_into(made, made.merged, how)
    return made


def stochastic(W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    value = W.double() + s * (B.double() @ A.double())
    near = value.to(W.dtype)
    other = torch.nextafter(near, torch.where(near.double() > value, -torch.inf, torch.inf).to(W.dtype))
    up = ((value - near.double()) / (other.double() - near.double())).clamp(0, 1)
    return torch.where(torch.rand(W.shape, generator=torch.Generator().manual_seed(0)) < up, other, near)


def quietened(case: Case, root: Path, share: float, how: cases.Merge = cases.single) -> Case:
    """‖Δ‖/‖W‖ = 1e-2, but `share` of that in QUIET; merged once, soundly."""
    loud = small(case, root, 1e-2 / rho(case))
    path, faint = loud.adapter / "adapter_model.safetensors", QUIET.replace(".weight", ".lora_B.weight")
    save_file({key: t * share if key.endswith(faint) else t for key, t in load_file(path).items()}, path)
    cases.expected_deltas(loud)
    shutil.rmtree(loud.merged)
    cases.merge_into(loud, loud.merged, how)
    return loud


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return cases.build("llama", tmp_path_factory.mktemp("llama"))


def rho(case: Case) -> float:
    """‖Δ‖/‖W‖ over all touched tensors."""
    held = {key: tensor.double() for tensors in cases.read(case.base).values() for key, tensor in tensors.items()}
    deltas = sum(float((s * (B.double() @ A.double())).square().sum()) for A, B, s, _ in case.deltas.values())
    return (deltas / sum(float(held[key].square().sum()) for key in case.deltas)) ** 0.5


def codes(certificate: Any, outcome: Outcome) -> set[str]:
    return {finding.code for finding in certificate.findings if finding.outcome is outcome}


def test_a_right_rounding_that_loses_the_fine_tune_is_refused_by_c8_alone(llama: Case, tmp_path: Path) -> None:
    case = small(llama, tmp_path, 3e-4 / rho(llama))
    assert rho(case) == pytest.approx(3e-4, rel=1e-3)
    certificate = certify.judge(case.base, case.adapter, case.merged)
    assert certificate.verdict is Verdict.REJECTED
    assert codes(certificate, Outcome.FAILED) == {"C8"}
    assert certificate.reason.startswith("refused: the fine-tune did not survive storage: ")
    waived = certify.judge(case.base, case.adapter, case.merged, min_retention=0.05)
    assert waived.verdict is Verdict.CERTIFIED
    assert "C8 warns" in waived.reason
    assert "--min-retention=0.05" in waived.statement["predicate"]["command"]


def test_faithful_tells_tensor_by_tensor(llama: Case, tmp_path: Path) -> None:
    """Among loud tensors a silent one cannot hide: the whole keeps 99 %, and C4 alone would accept either neighbour."""
    loud = quietened(llama, tmp_path, 0.03)
    certificate = certify.judge(loud.base, loud.adapter, loud.merged, criterion="faithful")
    failed = [finding for finding in certificate.findings if finding.outcome is Outcome.FAILED]
    assert [(finding.code, finding.subject) for finding in failed] == [("C8", QUIET)]
    assert certify.judge(loud.base, loud.adapter, loud.merged).verdict is Verdict.CERTIFIED


def test_stochastic_rounding_is_certified_under_faithful(llama: Case, tmp_path: Path) -> None:
    for factor in (1.0, 1e-2, 1e-3):
        case = small(llama, tmp_path / str(factor), factor, stochastic)
        certificate = certify.judge(case.base, case.adapter, case.merged, criterion="faithful")
        assert certificate.verdict is Verdict.CERTIFIED, certificate.reason


@pytest.mark.parametrize("merged", [True, False], ids=["merged", "unmerged"])
def test_where_the_noise_hides_a_tensor_nothing_is_certified(llama: Case, tmp_path: Path, merged: bool) -> None:
    """σ ≥ 0.3: a tensor without its delta keeps 0, which is within 1 ± (0.1 + 3σ). Nobody can tell the two merges apart."""
    case = quietened(llama, tmp_path, 1e-3, stochastic)
    held = {key: tensor for tensors in cases.read(case.base).values() for key, tensor in tensors.items()}
    cases.edit(case.merged, lambda key, tensor: held[key] if key == QUIET and not merged else tensor)
    certificate = certify.judge(case.base, case.adapter, case.merged, criterion="faithful")
    told = {finding.code: finding for finding in certificate.findings if finding.subject == QUIET}
    sigma, kept = (told["C8"].figures[name] for name in ("sigma", "retention"))
    assert isinstance(sigma, float)
    assert sigma >= 0.3
    assert (kept != 0) is merged
    assert (told["C4"].outcome, told["C8"].outcome) == (Outcome.PASSED, Outcome.UNDECIDED)
    assert (certificate.verdict, certificate.exit_code) == (Verdict.INCOMPLETE, 10)
    room = f"faithful rounding keeps 1 ± {0.1 + 3 * sigma:.3g} of this tensor's delta (0.1 + 3σ)"
    assert certificate.reason == f"C8 {QUIET}: {room}, so that a tensor without its delta would pass."


@pytest.mark.parametrize("sigma", [None, 0.0, 0.29, 0.3, 0.301, 1.0, 1e9])
def test_no_noise_lets_an_unmerged_tensor_pass(sigma: float | None) -> None:
    figures = {"retention": 0.0, "delta_norm": 1.0, "sigma": sigma}
    found = c8_fidelity.tensor_fidelity(Finding("C4", "a", Outcome.PASSED, figures=figures), "faithful")
    assert found is not None
    assert found.outcome is (Outcome.UNDECIDED if sigma is not None and sigma > 0.3 else Outcome.FAILED)


def test_one_unmerged_tensor_is_no_matter_of_storage(llama: Case, tmp_path: Path) -> None:
    case = cases.copied(llama, tmp_path)
    held = {key: tensor for tensors in cases.read(case.base).values() for key, tensor in tensors.items()}
    cases.edit(case.merged, lambda key, tensor: held[key] if key in case.deltas else tensor)
    certificate = certify.judge(case.base, case.adapter, case.merged, level="weights")
    assert "survive storage" not in certificate.reason
    assert codes(certificate, Outcome.FAILED) == {"C4"}
    assert "never merged" in certificate.reason


def test_an_accepted_difference_does_not_switch_off_the_question_about_the_rest(llama: Case, tmp_path: Path) -> None:
    """C4 refuses one tensor, and somebody answers for it; nearest rounding lost all the others."""
    case = small(llama, tmp_path, 3e-4 / rho(llama))
    cases.edit(case.merged, lambda key, tensor: tensor * 2 if key == QUIET else tensor)
    accepted = tmp_path / "accept.toml"
    accepted.write_text(f'[[accept]]\npattern = "{QUIET}"\ncodes = ["C4"]\nreason = "doubled on purpose"\nowner = "ana"\n')
    certificate = certify.judge(case.base, case.adapter, case.merged, level="weights", accept=accepted)
    assert certificate.verdict is Verdict.REJECTED, certificate.reason
    (whole,) = [finding for finding in certificate.findings if finding.outcome is Outcome.FAILED]
    assert (whole.code, whole.subject, whole.figures["tensors"]) == ("C8", "adapter", len(case.deltas) - 1)
    assert certificate.reason.startswith("refused: the fine-tune did not survive storage: ")


def test_the_certificate_and_the_page_show_the_distribution(llama: Case, tmp_path: Path) -> None:
    certificate = certify.judge(llama.base, llama.adapter, llama.merged)
    fidelity = certificate.statement["predicate"]["fidelity"]
    assert fidelity["tensors"] == len(llama.deltas) == sum(count for _, count in fidelity["histogram"])
    assert fidelity["quantiles"]["retention"]["least"] <= fidelity["retention"] <= fidelity["quantiles"]["retention"]["most"]
    report.write(certificate, certificate.findings, tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.count(" tensors near ") == sum(count > 0 for _, count in fidelity["histogram"])
    assert json.loads((tmp_path / "certificate.json").read_text())["predicate"]["fidelity"] == fidelity


def test_a_part_of_the_tensors_says_nothing_about_the_whole(llama: Case, tmp_path: Path) -> None:
    case = small(llama, tmp_path, 3e-4 / rho(llama))
    certificate = certify.judge(case.base, case.adapter, case.merged, only="*q_proj*")
    assert certificate.verdict is Verdict.INCOMPLETE


@pytest.mark.parametrize(
    ("kept", "least", "outcome", "told"),
    [
        (0.95, 0.5, "passed", False),
        (0.8, 0.5, "passed", True),
        (0.4, 0.5, "failed", True),
        (0.4, 0.3, "passed", True),
        (None, 0.5, "passed", False),
    ],
)
def test_the_rule(kept: float | None, least: float, outcome: str, told: bool) -> None:
    loud = Finding("C8", "a", Outcome.PASSED, figures={"retention": kept, "delta_norm": 1.0 if kept else 0.0})
    faint = Finding("C8", "b", Outcome.PASSED, figures={"retention": 0.0 if kept else None, "delta_norm": 1e-9 if kept else 0.0})
    (whole,) = c8_fidelity.whole_fidelity([loud, faint], 2, least)
    assert (whole.outcome.value, bool(whole.sentence)) == (outcome, told)
    assert c8_fidelity.whole_fidelity([loud], 2, least) == []


def test_a_minimum_outside_of_zero_to_one_is_a_usage_error(llama: Case) -> None:
    with pytest.raises(certify.UsageError, match="min-retention"):
        certify.judge(llama.base, llama.adapter, llama.merged, min_retention=1.5)
