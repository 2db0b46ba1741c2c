"""Quantised bases: sound merges are certified, faults are caught by the check that is named for them, what is not read is named.

All cells: `python -m exam.giants`.
"""

import json
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import certify
from certify.bounds import Delta, bound
from certify.checks.c3_untouched import untouched
from certify.encodings.coded import Coded, Shelf, owners
from certify.evidence import shards
from certify.finding import Outcome
from certify.grid import Grid
from certify.inputs.checkpoint import open_checkpoint
from certify.quantised import decoded
from certify.tensors import places
from certify.verdict import Verdict
from exam.giants.bench import DECODED, FAITHFUL, LIGHT, Way
from exam.giants.bench import Shelf as Bench
from exam.giants.faults import CHANNEL
from exam.giants.scene import FAULTS, SCALE, Fault
from exam.giants.sitting import alarm, planted
from exam.giants.tools import ALL, Tool

DEEPSEEK = "deepseek-v3-fp8"
SOUND = [
    (DEEPSEEK, FAITHFUL, "layers"),
    (CHANNEL, DECODED, "layers"),
    ("deepseek-v3-fp8-e8m0", LIGHT, "weights"),
    (DEEPSEEK, ALL[0], "weights"),
]
PLANTED = (
    "Δ added to the raw codes", "scales recomputed from a bf16 detour", "a grid so coarse that all is right on it", "values cut off at *",
    "one tensor unmerged among faithful ones", "scale keys left in a bf16 folder", "one fp8 tensor left in a bf16 folder",
    "a ragged block decoded on the wrong grid", "another block size announced", "quantization_config missing",
)  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("giants"))


@pytest.mark.parametrize(("proxy", "way", "level"), SOUND, ids=str)
def test_a_sound_merge_is_certified(proxy: str, way: Way, level: str, bench: Bench) -> None:
    assert not alarm(bench, proxy, way, level)


@pytest.mark.parametrize("name", PLANTED)
def test_a_fault_is_caught_by_the_check_that_is_named_for_it(name: str, bench: Bench) -> None:
    chosen = [fault for fault in FAULTS if fnmatchcase(fault.name, name)]
    assert chosen
    told = [(check, caught, said) for fault in chosen for check, caught, said in planted(bench, fault)]
    assert all(caught for _, caught, _ in told), told


def test_the_exam_tells_what_passes_in_silence_and_what_is_an_alarm(bench: Bench) -> None:
    nothing = Fault("nothing", DEEPSEEK, DECODED, (("C4", "*"),), lambda _: None)
    ((_, caught, told),) = planted(bench, nothing)
    assert not caught
    assert told.startswith("CERTIFIED")
    doubled = Tool("by doubled scales", "same", lambda s, name: s.rescale(name, 2 * s.base.tensors[name + SCALE], s.due(name)))
    assert alarm(bench, DEEPSEEK, doubled, "weights").startswith("REJECTED")


@pytest.mark.parametrize("change", ["fmt", "scale"])
def test_what_is_not_read_is_named(change: str, bench: Bench, tmp_path: Path) -> None:
    base = Path(shutil.copytree(bench.base(CHANNEL), tmp_path / "base"))
    named = "model.layers.0.mlp.gate_proj.weight"
    if change == "fmt":
        config = json.loads((base / "config.json").read_text())
        config["quantization_config"]["config_groups"]["group_0"]["weights"]["strategy"] = "token"
        (base / "config.json").write_text(json.dumps(config))
    else:
        for path in base.glob("model-*.safetensors"):
            held = load_file(path)
            if f"{named}_scale" in held:
                held[f"{named}_scale"] = held[f"{named}_scale"][:-1].contiguous()
                save_file(held, path, metadata={"format": "pt"})
    found = certify.judge(base, bench.adapter(CHANNEL), base, level="weights")
    assert change != "fmt" or found.verdict is Verdict.INCOMPLETE, "no weight is read, so that nobody can say that nothing was merged"
    blind = {finding.subject: finding.sentence for finding in found.findings if finding.outcome is Outcome.NOT_INTERPRETED}
    assert "stored as F8_E4M3" in blind[named]
    assert len([name for name in blind if name.endswith("proj.weight")]) == (21 if change == "fmt" else 1)


def test_evidence_rests_on_the_files_of_codes_and_scales(bench: Bench) -> None:
    base = open_checkpoint(bench.base("deepseek-v3-fp8-apart"))
    ours, theirs, _ = decoded(base, base)
    weights = owners(ours.tensors)
    assert len(weights) == 104
    found = shards(ours, theirs, places(ours, theirs))
    for scale, weight in weights.items():
        apart = {ours.file_of(scale), ours.file_of(weight)}
        assert all({f"base/{file}" for file in apart} <= set(found[shard].files) for shard in apart)
    assert any(ours.file_of(scale) != ours.file_of(weight) for scale, weight in weights.items())


def test_a_decoded_weight_is_code_times_scale_rounded_once(tmp_path: Path) -> None:
    """Just above the middle of two bf16 numbers, where float32 says that it is the middle: both roundings are right, no third number is."""
    middle = 1 + 2.0**-8
    code = next(code for code in (1.125, 1.25, 1.375, 1.625, 1.75) if float(torch.tensor(middle / code)) * code > middle)
    scale = torch.tensor([[middle / code]])
    assert float((scale * code)[0, 0]) == middle < scale.double().item() * code
    base = {"w": torch.tensor([[code]]).to(torch.float8_e4m3fn), "s": scale}
    save_file(base, tmp_path / "model.safetensors")
    found = open_checkpoint(tmp_path).tensors
    ours = Coded(found["w"].path, found["w"].entry, scale=found["s"], height=1, width=1, shelf=Shelf())
    right = {value: _stored(tmp_path, value, ours) for value in (1 - 2.0**-8, 1.0, 1 + 2.0**-7, 1 + 2.0**-6)}
    assert [value for value, outcome in right.items() if outcome is Outcome.PASSED] == [1.0, 1 + 2.0**-7]


def _stored(room: Path, value: float, base: Coded) -> Outcome:
    (room / "merged").mkdir(exist_ok=True)
    save_file({"w": torch.tensor([[value]]).bfloat16()}, room / "merged" / "model.safetensors")
    return untouched("w", base, open_checkpoint(room / "merged").tensors["w"]).outcome


def test_where_nothing_is_added_the_code_stays() -> None:
    """Under `faithful` too: a neighbour is right only where W + Δ lies between two."""
    codes, scale = torch.arange(0x10, 0x50, dtype=torch.uint8).view(8, 8), torch.tensor([[3.1e-4]])
    W = codes.view(torch.float8_e4m3fn).float() * scale
    delta = Delta(torch.zeros(8, 2), torch.randn(2, 8), 2.0, torch.float32)
    for criterion in ("nearest", "faithful"):
        right = bound(W, [delta], Grid(torch.float32, scale.expand(8, 8)), criterion, decoded=True)
        assert bool(right.holds(W.double()).all())
        for step in (-1, 1):
            other = (codes + step).view(torch.float8_e4m3fn).float() * scale
            assert not bool(right.holds(other.double()).any())


def test_an_own_float32_merge_is_one_of_the_right_ones() -> None:
    """On plain float32 arithmetic, divided or multiplied by the reciprocal, at every size of delta, with scales of any kind."""
    chance = torch.Generator().manual_seed(3)
    for rho in (1e-1, 1e-3, 1e-6):
        scale = torch.rand((32, 48), generator=chance) * 1e-3 + 1e-4
        codes = torch.randint(0, 0x7F, (32, 48), generator=chance, dtype=torch.uint8).view(torch.float8_e4m3fn)
        left, right = torch.randn((32, 4), generator=chance) * rho, torch.randn((4, 48), generator=chance) * 1e-2
        merged = codes.float() * scale + 2.0 * (left @ right)
        wide = scale * 2.0  # so that nothing overflows
        for quotient in (merged / wide, merged * (1 / wide)):
            stored = quotient.to(torch.float8_e4m3fn).float() * wide
            delta = Delta(left, right, 2.0, torch.float32)
            allowed = bound(codes.float() * scale, [delta], Grid(torch.float32, wide), "nearest", decoded=True)
            assert bool(allowed.holds(stored.double()).all())
