"""The exam in short: every planted fault in one place, judged whole. `python -m exam.table` has every place, size and dtype."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import certify
from certify.verdict import Verdict
from exam import sitting, table
from exam.faults import FAULTS, Fault
from exam.grid import FAMILIES, PLACES, Bench, bench
from exam.sitting import Cell, sit

RHO = 1e-2
NO_FAULT = ("vacuous", "inside")
LEAST = 60  # faults × checks


class Benches:
    """One bench per family and dtype, built when it is asked for."""

    def __init__(self, root: Path) -> None:
        self.root, self.built = root, dict[tuple[str, str], Bench]()

    def __call__(self, family: str, dtype: str = "bf16") -> Bench:
        if (family, dtype) not in self.built:
            self.built[family, dtype] = bench(family, dtype, RHO, self.root)
        return self.built[family, dtype]


@pytest.fixture(scope="module")
def benches(tmp_path_factory: pytest.TempPathFactory) -> Benches:
    return Benches(tmp_path_factory.mktemp("benches"))


def sat(fault: Fault, benches: Benches) -> list[Cell]:
    """The cells of one place where the fault is one: a kind of module that differs from fault to fault."""
    if fault.plant is not None:
        return list(sit(fault, benches(fault.family)))
    places = [place for place in PLACES if place[1] in fault.roles]
    first = list(FAULTS).index(fault.name) % len(places)
    for dtype in ("bf16", "fp32"):
        for family, _, kind, *_ in places[first:] + places[:first]:
            held = benches(family, dtype)
            cells = list(sit(fault, replace(held, sites=tuple(site for site in held.sites if site.kind == kind))))
            if cells and not {cell.outcome for cell in cells} & {*NO_FAULT}:
                return cells
    return []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merges_that_are_spoiled_are_sound(benches: Benches, family: str) -> None:
    case = benches(family).case
    certificate = certify.judge(case.base, case.adapter, case.merged, level="modules")
    assert certificate.verdict is Verdict.CERTIFIED, certificate.reason


@pytest.mark.parametrize("name", list(FAULTS))
def test_each_fault_is_caught_by_each_check_that_is_named_for_it(benches: Benches, name: str) -> None:
    cells = sat(FAULTS[name], benches)
    assert cells
    for cell in cells:
        assert cell.outcome in table.RIGHT, f"{cell.check} at {cell.site}: {cell.told}"
        assert cell.outcome != "not interpreted" or FAULTS[name].unknown
        assert cell.told


def test_the_register() -> None:
    """Enough faults; every check up to the level of modules is named; each fault in a tensor meets three kinds of tensors."""
    codes = {"adapted": "C4", "silent": "C4", "replaced": "C4", "carried": "C3"}
    pairs = {(fault.name, code) for fault in FAULTS.values() for code in fault.caught_by if not fault.unknown}
    pairs |= {(fault.name, codes[role]) for fault in FAULTS.values() for role in fault.roles}
    assert len(pairs) >= LEAST
    assert {code for _, code in pairs} == {"C1", "C2", "C3", "C4", "C5", "C7", "C8"}  # C6, C9 and C10 have exams of their own
    for role in {role for fault in FAULTS.values() for role in fault.roles} - {"silent"}:
        assert len({kind for _, of, kind, *_ in PLACES if of == role}) >= 3


def test_places_are_in_several_shards_and_some_are_not_square(benches: Benches) -> None:
    for family in FAMILIES:
        held = benches(family)
        assert len(list(held.case.merged.glob("model*.safetensors"))) > 1
        for role in {site.role for site in held.sites} - {"silent"}:
            shapes = [tuple(site.W.shape) for site in held.sites if site.role == role]
            assert any(len(shape) == 1 or shape[0] != shape[1] for shape in shapes), (family, role)


def test_a_gate_that_sees_nothing_is_told(benches: Benches, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exam can fail: with the certificate of the sound merge for every answer, all cells are silent passes."""
    case = benches("deepseek").case
    sound = certify.judge(case.base, case.adapter, case.merged, level="modules")
    monkeypatch.setattr(sitting.certify, "judge", lambda *_, **__: sound)
    for name in ("delta_missing", "shard_truncated", "dora_ignored"):
        cells = list(sit(FAULTS[name], benches("deepseek")))
        assert {cell.outcome for cell in cells} == {"silent"}
        assert len(table.defects(cells)) == len(cells) + len({cell.check for cell in cells}), "each cell, and never caught"


@pytest.mark.parametrize(
    ("dtype", "spoil", "outcome"),
    [
        ("bf16", lambda site: site.sound.clone(), "vacuous"),
        ("fp32", lambda site: torch.nextafter(site.sound, site.sound * 2), "inside"),
        ("bf16", lambda site: torch.nextafter(site.sound, site.sound * 2), "caught"),
    ],
)
def test_what_is_no_fault_is_counted_apart(benches: Benches, dtype: str, spoil: Callable[[Any], torch.Tensor], outcome: str) -> None:
    fault = Fault("planted", "test", {"C4": "*"}, spoil=spoil, roles=("adapted",))
    cells = list(sit(fault, benches("deepseek", dtype)))
    assert {cell.outcome for cell in cells} == {outcome}
    assert bool(table.defects(cells)) is (outcome in NO_FAULT), "a fault that is never one is a defect of the exam"


def test_outputs_that_cannot_tell_leave_it_to_c4(benches: Benches) -> None:
    """B is zero: the module answers to nothing that the adapter does, and C5 says so."""
    fault = Fault("planted", "test", {"C4": "*", "C5": "*"}, spoil=FAULTS["lowest_bit_flipped"].spoil, roles=("silent",))
    assert {cell.check: cell.outcome for cell in sit(fault, benches("llama"))} == {"C4": "caught", "C5": "undecided"}


def test_the_table_shows_every_cell(benches: Benches) -> None:
    cells = list(sit(FAULTS["delta_transposed"], benches("deepseek")))
    (line,) = [row for row in table.rows(cells) if row[2] == "C5"]
    assert line[:4] == ["places", "delta_transposed", "C5", "attention, expert, head"]
    assert line[4:] == ["–", "3", *["–"] * 10]
    assert "6 cells: caught 6," in table.totals(cells, 1.0)[-1]
    assert "| delta_transposed | C4 |" in table.markdown(cells, 1.0)
