"""Bad input: a clear sentence, exit code 3, nothing written, no traceback."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import merge
from merge.__main__ import app
from merge.errors import MergeError
from tests.test_merge import damage
from tests.test_merge.damage import Q, Room


@pytest.fixture
def room(llama: SimpleNamespace, tmp_path: Path) -> Room:
    base, adapter = (shutil.copytree(folder, tmp_path / folder.name) for folder in (llama.base, llama.adapter))
    return Room(base, adapter, tmp_path / "out")


BAD: dict[str, tuple[Callable[[Room], object], str]] = {
    "missing base": (lambda r: shutil.rmtree(r.base), "there is no such directory"),
    "missing adapter": (lambda r: shutil.rmtree(r.adapter), "there is no such directory"),
    "base without weights": (lambda r: [p.unlink() for p in r.base.glob("*.safetensors*")], "neither model.safetensors.index.json nor"),
    "index names a missing file": (lambda r: r.shard.unlink(), "names 1 missing files"),
    "index is not JSON": (lambda r: (r.base / "model.safetensors.index.json").write_text("{"), "cannot be read as JSON"),
    "index disagrees": (lambda r: r.index(lambda m: m.pop(next(iter(m)))), "disagree about 1 tensors"),
    "path traversal": (lambda r: r.index(lambda m: m.update({next(iter(m)): "../evil.safetensors"})), "is not a shard beside it"),
    "header overlaps": (lambda r: r.header(damage.overlap), "overlaps"),
    "header overruns": (lambda r: r.header(lambda e: damage.first(e).update(data_offsets=[0, 1 << 40])), "occupies bytes 0…1099511627776"),
    "header over the limit": (damage.huge, "limit of 100,000,000"),
    "header repeats a key": (lambda r: r.header(damage.repeated), "twice"),
    "header is not JSON": (lambda r: r.header(lambda e: b"not json"), "not valid JSON"),  # noqa: ARG005
    "truncated shard": (damage.truncate, "truncated"),
    "config of the base missing": (lambda r: (r.base / "config.json").unlink(), "config.json of the base cannot be read"),
    "unknown architecture, square, orientation unsaid": (
        lambda r: (r.unknown(), r.config(fan_in_fan_out=None)),
        "which way round it is stored cannot be known",
    ),
    "unknown architecture, other names": (lambda r: (r.unknown(), r.tensors(damage.other_model)), "have no place in the base checkpoint"),
    "adapter without configuration": (lambda r: (r.adapter / "adapter_config.json").unlink(), "adapter_config.json"),
    "adapter without weights": (lambda r: (r.adapter / "adapter_model.safetensors").unlink(), "neither adapter_model.safetensors nor"),
    "unmatched adapter tensors": (
        lambda r: r.tensors(damage.other_model),
        "have no place in the base checkpoint(.|\n)*nearest base weight",
    ),
    "unexpected adapter tensor": (lambda r: r.tensors(lambda t: t.update({"x.lora_magnitude_vector": torch.ones(3)})), "of a kind that"),
    "missing lora_B": (lambda r: r.tensors(lambda t: t.pop(f"{Q}.lora_B.weight")), "no lora_B"),
    "truncated adapter": (
        lambda r: r.tensors(lambda t: [t.pop(f"{Q}.lora_{half}.weight") for half in "AB"]),
        "1 of 21 weights that target_modules",
    ),
    "wrong rank": (lambda r: r.tensors(damage.rank), "the configuration says"),
    "NaN in the adapter": (lambda r: r.tensors(damage.nan), "NaN or infinite"),
    "another model's adapter": (lambda r: r.tensors(damage.wider), "make a delta of shape"),
    "DoRA": (lambda r: r.config(use_dora=True), "use_dora is true, and there is no lora_magnitude_vector"),
    "alpha that is no number": (lambda r: r.config(lora_alpha=float("nan")), "a finite number was expected, found nan"),
    "switch that is a word": (lambda r: r.config(use_rslora="false"), "true or false was expected"),
    "rank 0": (lambda r: r.config(r=0), "a rank of at least 1"),
    "pattern that is no regex": (lambda r: r.config(alpha_pattern={"(": 2}), "cannot be read"),
    "trained head that is not in the file": (lambda r: r.config(modules_to_save=["lm_head"]), "1 of 22 weights"),
    "compressed pickle": (damage.compressed, "compressed or big-endian"),
    "token beyond the embedding": (damage.far_token, "lies beyond the embedding's 320 rows"),
    "unknown field": (lambda r: r.config(next_year=1), "next_year = 1"),
    "legacy pickle": (damage.legacy, r"Convert it where you trust it:\n  python -c"),
    "pickle with code": (damage.evil_pickle, "not a file of plain tensors"),
    "out holds something else": (lambda r: (r.out.mkdir(), (r.out / "x").touch()), "not empty, and no merge of ours"),
    "out is a file": (lambda r: r.out.touch(), "is not a directory"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_is_written(name: str, room: Room) -> None:
    spoil, sentence = BAD[name]
    spoil(room)
    before = sorted(room.out.rglob("*")) if room.out.is_dir() else room.out.exists()
    with pytest.raises(MergeError, match=sentence) as refusal:
        merge.merge(room.base, room.adapter, room.out)
    assert refusal.value.exit_code == 3
    assert "Nothing was written." in str(refusal.value)
    assert (sorted(room.out.rglob("*")) if room.out.is_dir() else room.out.exists()) == before


@pytest.mark.parametrize("out", ["base", "base/below", "adapter", "."])
def test_out_must_not_touch_what_is_read(out: str, room: Room) -> None:
    places = {"base": room.base, "base/below": room.base / "below", "adapter": room.adapter, ".": room.base.parent}
    before = sorted(room.base.parent.rglob("*"))
    with pytest.raises(MergeError, match="lies in"):
        merge.merge(room.base, room.adapter, places[out])
    assert sorted(room.base.parent.rglob("*")) == before


def test_a_disk_that_is_too_small(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(MergeError, match="the disk is too small"):
        merge.merge(room.base, room.adapter, room.out)
    assert not room.out.exists()


def test_a_value_beyond_the_output_dtype_is_named(room: Room) -> None:
    room.tensors(lambda t: t[f"{Q}.lora_B.weight"].mul_(1e9))
    with pytest.raises(MergeError, match=r"layers\.0\.self_attn\.q_proj.*beyond what F16 can hold") as failure:
        merge.merge(room.base, room.adapter, room.out, output_dtype="fp16")
    assert failure.value.exit_code == 4
    assert not (room.out / "merge-manifest.json").exists()


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (["--weight", "0.5", "--weight", "2"], "2 --weight for 1 --adapter"),
        (["--rounding", "up"], "--rounding up"),
        (["--device", "cuda"], "--device cuda"),
        (["--link"], "--link"),
        (["--seed", "1"], "--seed"),
        (["--output-dtype", "fp8"], "--output-dtype fp8"),
    ],
)
def test_options_that_nobody_built_end_with_2_and_are_named(option: list[str], named: str, room: Room) -> None:
    result = CliRunner().invoke(app, ["run", f"--base={room.base}", f"--adapter={room.adapter}", f"--out={room.out}", *option])
    assert result.exit_code == 2
    assert named in result.output
    assert not room.out.exists()


@pytest.mark.parametrize("options", [{"output_dtype": "bfloat16"}, {"block_mib": 0}, {"workers": -1}], ids=str)
def test_options_of_the_python_interface(options: dict[str, Any], room: Room) -> None:
    with pytest.raises(MergeError, match=r"Nothing was written"):
        merge.merge(room.base, room.adapter, room.out, **options)
    assert not room.out.exists()


def test_another_dtype_for_a_quantised_base(room: Room) -> None:
    tensors = load_file(room.shard)
    name = "model.embed_tokens.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, room.shard, metadata={"format": "pt"})
    with pytest.raises(MergeError, match=r"1 quantised tensors have no scale(.|\n)*Nothing was written"):
        merge.merge(room.base, room.adapter, room.out, output_dtype="fp32")
    assert merge.merge(room.base, room.adapter, room.out).tensors["merged"] == 21


def test_a_pickle_is_merged_to_the_same_bytes(room: Room, llama: SimpleNamespace) -> None:
    merge.merge(llama.base, llama.adapter, room.out)
    damage.as_pickle(room)
    merge.merge(llama.base, room.adapter, room.out.with_name("pickled"))
    for shard in room.out.glob("*.safetensors"):
        assert shard.read_bytes() == (room.out.with_name("pickled") / shard.name).read_bytes()


def test_a_missing_expert_is_seen(deepseek_experts: SimpleNamespace, tmp_path: Path) -> None:
    adapter = shutil.copytree(deepseek_experts.adapter, tmp_path / "adapter")
    tensors = torch.load(adapter / "adapter_model.bin", weights_only=True)
    kept = {name: value for name, value in tensors.items() if ".experts.3." not in name}
    assert len(kept) < len(tensors)
    torch.save(kept, adapter / "adapter_model.bin")
    with pytest.raises(MergeError, match=r"have no tensors in the adapter(.|\n)*experts\.3\."):
        merge.merge(deepseek_experts.base, adapter, tmp_path / "out")


def test_plan_refuses_as_run_does(room: Room) -> None:
    room.config(use_dora=True)
    with pytest.raises(MergeError, match="use_dora"):
        merge.plan(room.base, room.adapter, room.out)
