"""Planning is pure: headers, settings and names in, data out. The golden plan changes only when somebody means it to.

After a change that is meant: `MERGEGATE_GOLDEN=1 python -m pytest tests/test_merge/test_planner.py`, and read the difference.
"""

import itertools
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merge.adapters import Adapter, config
from merge.catalog import Catalog, Tensor, compose
from merge.errors import AdapterError
from merge.nametable import Alias, NameTable, Weight
from merge.operation import Operation
from merge.planner import Options, Plan, plan

GOLDEN = Path(__file__).parent / "golden" / "plan.json"
CATALOGS = (
    compose("model-00001-of-00002.safetensors", [("a.weight", "BF16", (6, 4)), ("a.bias", "BF16", (6,)), ("mtp.x", "BF16", (3, 3))], {}),
    compose("model-00002-of-00002.safetensors", [("h.c.weight", "BF16", (4, 6)), ("router.bias", "F32", (5,))], {"format": "pt"}),
)
KEYS = {
    "a.weight": Weight("a.weight", "a.weight", "a.weight", "linear", False),
    "a.bias": Weight("a.bias", "a.bias", "a.bias", "other", False),
    "h.c.weight": Weight("h.c.weight", "t.h.c.weight", "t.h.c.weight", "conv1d", False),
    "router.bias": Weight("router.bias", "router.bias", "router.bias", "other", False),
}
SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["a", "c"], "modules_to_save": ["router"]}


def tensor(name: str, shape: tuple[int, ...], dtype: str = "F32") -> Tensor:
    return Tensor(name, dtype, shape, "adapter_model.safetensors", 0, 4)


def adapter(*tensors: Tensor, **changed: Any) -> Adapter:
    return Adapter.of(0, config.read({**SETTINGS, **changed}), {t.name: t for t in tensors})


GIVEN = (
    tensor("base_model.model.a.lora_A.weight", (2, 4)),
    tensor("base_model.model.a.lora_B.weight", (6, 2)),
    tensor("base_model.model.t.h.c.lora_A.weight", (2, 4)),
    tensor("base_model.model.t.h.c.lora_B.weight", (6, 2)),
    tensor("base_model.model.router.bias", (5,)),
)
NAMES = [f"{module}.{leaf}" for module in ("a", "t.h.c", "router", "gone") for leaf in ("weight", "bias", "in_proj_weight")]
TABLE = NameTable(
    architecture="Toy",
    weights=tuple(KEYS.values()),
    unmatched=("mtp.x",),
    aliases={name: Alias(name, name) for name in NAMES},
    tied={},
    modules={"a": "linear", "t.h.c": "conv1d"},
    embedding=None,
)


def planned(given: tuple[Tensor, ...] = GIVEN, table: NameTable = TABLE, **options: Any) -> Plan:
    return plan(CATALOGS, (adapter(*given),), table, Options(**options))


def operations(made: Plan) -> dict[str, Operation]:
    return {operation.target.name: operation for operation in made.operations}


def test_the_golden_plan() -> None:
    text = json.dumps(planned().to_json(), indent=1, sort_keys=True) + "\n"
    if os.environ.get("MERGEGATE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_operations_tile_their_shard() -> None:
    for catalog, shard in zip(CATALOGS, planned().shards, strict=True):
        assert shard.header == catalog.header
        position = len(shard.header)
        for operation in shard.operations:
            assert operation.target.start == position
            spans = [operation.slabs.span(operation.target, start, stop) for start, stop in operation.slabs]
            assert spans[0][0] == position
            assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
            position = spans[-1][1]
        assert position == shard.size


def test_what_each_tensor_becomes() -> None:
    found = operations(planned())
    assert {name: operation.kind for name, operation in found.items()} == {
        "a.weight": "merge",
        "a.bias": "copy",
        "mtp.x": "copy",
        "h.c.weight": "merge",
        "router.bias": "replace",
    }
    assert [part.scaling for part in found["a.weight"].parts] == [3.0]
    assert not found["a.weight"].parts[0].transposed
    assert found["h.c.weight"].parts[0].transposed
    assert planned().counts == {"copied": 2, "merged": 2, "replaced": 1}


def test_another_dtype_moves_the_tensors_but_not_what_is_kept_apart() -> None:
    found = operations(planned(output_dtype="fp32"))
    assert found["mtp.x"].target.dtype == "F32"
    assert found["mtp.x"].target.size == 36
    assert not found["mtp.x"].verbatim
    assert found["router.bias"].target.dtype == "F32"


@pytest.mark.parametrize("block", [1, 2])
def test_slabs_depend_on_the_option_alone(block: int) -> None:
    tall = (compose("model.safetensors", [("a.weight", "BF16", (1 << 20, 4))], {}),)
    given = (tensor("a.lora_A.weight", (2, 4)), tensor("a.lora_B.weight", (1 << 20, 2)))
    table = replace(TABLE, weights=(KEYS["a.weight"],), modules={"a": "linear"})
    made = plan(tall, (adapter(*given, modules_to_save=None),), table, Options(block_mib=block))
    assert operations(made)["a.weight"].slabs.height == block * (1 << 20) // 8


@pytest.mark.parametrize(
    ("given", "table", "sentence"),
    [
        ((*GIVEN, tensor("gone.lora_A.weight", (2, 4)), tensor("gone.lora_B.weight", (6, 2))), TABLE, "2 adapter tensors have no place"),
        (GIVEN[2:], TABLE, "1 of 3 weights that target_modules(.|\\n)*have no tensors"),
        (GIVEN[:4], TABLE, "1 of 3 weights(.|\n)*router.bias"),
        ((*GIVEN[:4], tensor("router.bias", (4,))), TABLE, "replaces it by a tensor of shape"),
        ((tensor("a.lora_A.weight", (2, 5)), *GIVEN[1:]), TABLE, "make a delta of shape|incomplete|two contributions"),
        (GIVEN, replace(TABLE, tied={"x": "a.weight"}, encoder_decoder=True), "scales the outputs of Toy as well"),
        (GIVEN, replace(TABLE, weights=tuple(replace(w, layout="other") for w in TABLE.weights)), "not a linear layer"),
        ((*GIVEN[:2], *(replace(t, dtype="I64") for t in GIVEN[2:4]), GIVEN[4]), TABLE, "adapter tensors of this dtype"),
    ],
    ids=["stranger", "truncated", "saved", "replacement", "shape", "tied", "layout", "dtype"],
)
def test_what_does_not_fit_is_refused(given: tuple[Tensor, ...], table: NameTable, sentence: str) -> None:
    with pytest.raises(AdapterError, match=sentence) as refusal:
        planned(given, table)
    assert "Nothing was written." in str(refusal.value)


def test_a_dtype_that_is_only_carried_is_not_merged_into() -> None:
    quantised: tuple[Catalog, ...] = (compose("m.safetensors", [("a.weight", "F8_E4M3", (6, 4))], {}),)
    table = replace(TABLE, weights=(KEYS["a.weight"],), modules={"a": "linear"})
    with pytest.raises(AdapterError, match="carries but does not merge into"):
        plan(quantised, (adapter(*GIVEN[:2], modules_to_save=None),), table, Options())
