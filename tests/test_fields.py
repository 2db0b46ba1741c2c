"""Every field of PEFT's LoraConfig, set to something else than its default: honoured, without effect, or refused by name, in both packages.

A field of a later PEFT has no line here, so that the test fails until somebody has said what it means for a merge.
"""

import dataclasses
import json
import warnings
from typing import Any, Literal

import peft
import pytest

from certify.errors import DamagedError
from certify.expect.terms import plain_lora, read_terms, uninterpreted
from merge.adapters import config
from merge.errors import AdapterError

Kind = Literal["honoured", "idle", "refused"]
OURS = {"lora_B_layout"}  # of Unsloth, not of PEFT
FIELDS: dict[str, list[tuple[Any, Kind, Kind, str]]] = {  # value, what the engine makes of it, what the gate does, and why
    "peft_type": [("LOHA", "refused", "refused", "another method")],
    "task_type": [("SEQ_CLS", "honoured", "honoured", "the class whose head the adapter brings")],
    "auto_mapping": [({"base_model_class": "X"}, "idle", "idle", "which class PEFT wraps; the checkpoint names its own")],
    "peft_version": [("0.18.1", "honoured", "honoured", "square experts, scaled embeddings, attention modules")],
    "base_model_name_or_path": [("elsewhere/base", "idle", "idle", "provenance")],
    "revision": [("main", "idle", "idle", "provenance")],
    "inference_mode": [(False, "idle", "idle", "whether it is to be trained")],
    "r": [(2, "honoured", "honoured", "the factor of B·A"), ("4", "refused", "refused", "PEFT compares numbers")],
    "target_modules": [
        (["v_proj"], "honoured", "honoured", "names"),
        (".*v_proj", "honoured", "honoured", "a pattern"),
        ("ALL-linear", "honoured", "honoured", "resolved as PEFT does"),
        ({"q_proj": 1}, "refused", "refused", "no list"),
    ],
    "exclude_modules": [(["v_proj"], "honoured", "honoured", "names"), (".*v_proj", "honoured", "honoured", "a pattern")],
    "lora_alpha": [
        (3.5, "honoured", "honoured", "the factor of B·A"),
        (True, "refused", "refused", "no number"),
        ("16", "refused", "refused", "no number"),
    ],
    "lora_dropout": [(0.1, "idle", "idle", "in training alone")],
    "fan_in_fan_out": [(True, "honoured", "idle", "the module's class decides; the gate reads unknown ones only where it is false")],
    "bias": [
        ("all", "honoured", "honoured", "biases that were trained whole"),
        ("lora_only", "honoured", "honoured", "of adapted modules"),
        ("some", "refused", "refused", "PEFT knows no such value"),
    ],
    "use_rslora": [(True, "honoured", "honoured", "α/√r"), ("false", "refused", "refused", "PEFT takes any text for true")],
    "modules_to_save": [
        (["lm_head"], "honoured", "honoured", "modules that were trained whole"),
        ("lm_head", "refused", "refused", "PEFT takes a text for its letters"),
    ],
    "init_lora_weights": [
        (False, "idle", "idle", "the base keeps its weights"),
        ("gaussian", "idle", "idle", "the base keeps its weights"),
        ("eva", "idle", "idle", "the base keeps its weights"),
        ("orthogonal", "idle", "idle", "the base keeps its weights"),
        *((init, "refused", "refused", "it changed the base") for init in ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq")),
        ("mica", "refused", "refused", "not merged yet"),
    ],
    "layers_to_transform": [
        ([1], "honoured", "honoured", "numbers"),
        (1, "honoured", "honoured", "a number"),
        (["1"], "refused", "refused", "PEFT compares numbers"),
        (True, "refused", "refused", "PEFT takes it for layer 1"),
        ([0.5], "refused", "refused", "no layer"),
    ],
    "layers_pattern": [("blocks", "honoured", "honoured", "where layers_to_transform counts"), (["h"], "honoured", "honoured", "a list")],
    "rank_pattern": [({"v_proj": 2}, "honoured", "honoured", "the rank of some"), ({"v_proj": 0}, "refused", "refused", "no rank")],
    "alpha_pattern": [({"v_proj": 2}, "honoured", "honoured", "the factor of some"), ({"v_proj": "2"}, "refused", "refused", "no number")],
    "megatron_config": [({"a": 1}, "idle", "idle", "how layers were split; PEFT, which would import what it names, is not asked")],
    "megatron_core": [("some.module", "idle", "idle", "what PEFT imports for megatron_config")],
    "trainable_token_indices": [
        ([3, 5], "honoured", "honoured", "rows of the input embedding"),
        ({"lm_head": [3]}, "honoured", "honoured", "rows of a module"),
        *((rows, "refused", "refused", "no rows") for rows in ([0.5], [True], [-1], ["3"], [[3]], "3", {"embed_tokens": 3})),
    ],
    "loftq_config": [({"loftq_bits": 4}, "idle", "idle", "of an initialisation that init_lora_weights names")],
    "eva_config": [({"rho": 1.0}, "idle", "idle", "of an initialisation that init_lora_weights names")],
    "corda_config": [({"corda_method": "kpm"}, "idle", "idle", "of an initialisation that init_lora_weights names")],
    "lora_ga_config": [({"direction": "ArBr"}, "idle", "idle", "of an initialisation that init_lora_weights names")],
    "use_dora": [(True, "honoured", "honoured", "lengths"), (1, "refused", "refused", "no true or false")],
    "velora_config": [({"a": 1}, "refused", "refused", "extra tensors")],
    "alora_invocation_tokens": [([1, 2], "refused", "refused", "acts behind some tokens alone")],
    "use_qalora": [(True, "refused", "refused", "changes zero points")],
    "qalora_group_size": [(32, "idle", "idle", "of use_qalora")],
    "monteclora_config": [({"a": 1}, "refused", "refused", "extra tensors")],
    "layer_replication": [([[0, 2], [1, 2]], "honoured", "honoured", "another stack"), ("02", "refused", "refused", "no ranges")],
    "runtime_config": [({"ephemeral_gpu_offload": True}, "idle", "idle", "PEFT does not save it")],
    "lora_bias": [(True, "honoured", "honoured", "biases of B"), ("true", "refused", "refused", "no true or false")],
    "target_parameters": [
        (["mlp.experts.down_proj"], "honoured", "honoured", "parameters without their module"),
        ("weight", "refused", "refused", "PEFT takes a text for its letters"),
    ],
    "use_bdlora": [({"a": 1}, "refused", "refused", "not merged yet")],
    "arrow_config": [({"a": 1}, "refused", "refused", "routes")],
    "kasa_config": [({"a": 1}, "refused", "refused", "cuts the base first")],
    "ensure_weight_tying": [
        (True, "honoured", "idle", "the gate compares the values of tied weights themselves"),
        ("yes", "refused", "refused", "no true or false"),
    ],
    "lora_B_layout": [
        ("grouped_by_expert", "honoured", "honoured", "Unsloth's order of columns"),
        ("column_major", "refused", "refused", "nobody's"),
    ],
}  # fmt: skip
CASES = [(field, value, engine, gate) for field, cases in FIELDS.items() for value, engine, gate, _ in cases]


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """What PEFT itself writes for an adapter with nothing but its defaults."""
    return dict(json.loads(json.dumps(peft.LoraConfig(target_modules=["q_proj"]).to_dict(), default=_plainly)))


def _plainly(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value.value)


def test_every_field_of_peft_has_its_line() -> None:
    assert set(FIELDS) == {field.name for field in dataclasses.fields(peft.LoraConfig)} | OURS


def test_what_peft_writes_is_understood(plain: dict[str, Any]) -> None:
    assert config.read(plain).rank == read_terms(plain).r == 8
    assert uninterpreted(plain) == []
    assert plain_lora(plain)


@pytest.mark.parametrize(("field", "value", "expected", "_"), CASES)
def test_the_engine(field: str, value: Any, expected: Kind, _: Kind, plain: dict[str, Any]) -> None:
    told = "Nothing was written."
    try:
        kind = "idle" if config.read(plain | {field: value}) == config.read(plain) else "honoured"
    except AdapterError as error:
        kind, told = "refused", str(error)
    assert kind == expected
    assert "Nothing was written." in told


@pytest.mark.parametrize(("field", "value", "_", "expected"), CASES)
def test_the_gate(field: str, value: Any, _: Kind, expected: Kind, plain: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is asked that would warn
        try:
            odd = uninterpreted(plain | {field: value})
            kind = "refused" if odd else "idle" if read_terms(plain | {field: value}) == read_terms(plain) else "honoured"
            assert not odd or odd[0].startswith(field)
        except DamagedError:
            kind = "refused"
    assert kind == expected


def test_peft_is_not_asked_to_import_what_a_file_names(plain: dict[str, Any]) -> None:
    assert not plain_lora(plain | {"megatron_config": {"a": 1}, "megatron_core": "os"})
