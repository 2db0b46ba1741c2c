"""C7: what transformers and the engine legitimately do to side files trips nothing; the faults are in exam/faults/side.py."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

import certify
import merge
from certify.inputs.folder import folder_digest
from certify.verdict import Verdict
from exam.faults.side import edit
from merge.proxies import make_adapter, make_checkpoint
from tests.test_certify.side_cases import change_tensors, failed, judged, older, saved_again, with_more

FAMILIES = ("llama", "qwen2", "gpt2", "deepseek-v3")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One base per family; llama has an adapter and a sound merge by the engine beside it."""
    room = tmp_path_factory.mktemp("side")
    for family in FAMILIES:
        make_checkpoint(family, room / family)
    with_more(room / "llama")
    make_adapter(room / "llama", room / "adapter")
    merge.merge(room / "llama", room / "adapter", room / "merged")
    return room


@pytest.mark.parametrize("age", ["new", "old"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_saved_again_by_transformers_is_sound(room: Path, tmp_path: Path, family: str, age: str) -> None:
    base = tmp_path / "base"
    shutil.copytree(room / family, base)
    for extra in ("preprocessor_config.json", "modeling_own.py"):  # a model's save_pretrained loses these
        (base / extra).unlink(missing_ok=True)
    base = older(base, tmp_path / "older") if age == "old" else base
    assert failed(judged(base, saved_again(base, tmp_path / "out"))) == {}


def test_a_value_that_only_other_loaders_read_must_be_the_bases(room: Path, tmp_path: Path) -> None:
    """transformers 5 reads rope_parameters and ignores the rope_theta beside it; other loaders do not."""
    base = older(room / "gpt2", tmp_path / "base")
    edit(base / "config.json", model_type="llama", hidden_size=96, rope_theta=10_000.0)
    shutil.copytree(base, tmp_path / "out")
    edit(tmp_path / "out" / "config.json", rope_theta=1234.0, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
    assert failed(judged(base, tmp_path / "out")) == {"config.json": "rope_theta is 1234.0, 10000.0 was expected"}


def test_the_mtp_layer_that_transformers_loses_is_named(room: Path, tmp_path: Path) -> None:
    base = room / "deepseek-v3"
    told = failed(judged(base, saved_again(base, tmp_path / "out")))
    assert list(told) == ["config.json"]
    assert told["config.json"].startswith("num_nextn_predict_layers is 1; no tensor")


@pytest.mark.parametrize(("family", "declared"), [("llama", "same"), ("qwen2", "fp32"), ("gpt2", "bf16"), ("deepseek-v3", "fp16")])
def test_the_engines_output_is_sound(room: Path, tmp_path: Path, family: str, declared: str) -> None:
    adapter = make_adapter(room / family, tmp_path / "adapter")
    merge.merge(room / family, adapter, tmp_path / "out", output_dtype=declared)
    assert failed(judged(room / family, tmp_path / "out", adapter, output_dtype=declared)) == {}
    if declared != "same":
        assert "config.json" in failed(judged(room / family, tmp_path / "out", adapter))


def test_c7_is_part_of_the_judgement(room: Path, tmp_path: Path) -> None:
    shutil.copytree(room / "merged", tmp_path / "out")
    sound = certify.judge(room / "llama", room / "adapter", tmp_path / "out", base_digest=folder_digest(room / "llama"))
    assert sound.verdict is Verdict.CERTIFIED, sound.reason
    assert sound.statement["predicate"]["base"]["identity"]["status"] == "proven"
    edit(tmp_path / "out" / "config.json", eos_token_id=255)
    certificate = certify.judge(room / "llama", room / "adapter", tmp_path / "out", only="config.json")
    assert certificate.verdict is Verdict.REJECTED
    assert "1 side file is not what base and adapter say: config.json (eos_token_id is 255, 257 was expected)" in certificate.reason


def test_another_base_than_the_digest_says_is_refused(room: Path) -> None:
    certificate = certify.judge(room / "llama", room / "adapter", room / "merged", base_digest="0" * 64, only="base: identity")
    assert certificate.verdict is Verdict.REJECTED
    assert certificate.statement["predicate"]["base"]["identity"]["status"] != "proven"
    with pytest.raises(certify.UsageError, match="64 hexadecimal digits"):
        certify.judge(room / "llama", room / "adapter", room / "merged", base_digest="D")


@pytest.mark.parametrize(("stated", "status"), [("someone/llama", "claimed"), ("someone/else", "unknown"), ("", "unknown")])
def test_who_says_what_the_base_is(room: Path, tmp_path: Path, stated: str, status: str) -> None:
    shutil.copytree(room / "adapter", tmp_path / "adapter")
    edit(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=stated)
    certificate = certify.judge(room / "llama", tmp_path / "adapter", room / "merged", only="config.json")
    assert certificate.statement["predicate"]["base"]["identity"]["status"] == status


def test_the_adapters_complete_tokenizer_is_as_good_as_the_bases(room: Path, tmp_path: Path) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    shutil.copytree(room / "adapter", adapter)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(room / "llama" / name, adapter / name)
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    merge.merge(room / "llama", adapter, out)
    assert failed(judged(room / "llama", out, adapter)) == {}
    assert list(failed(judged(room / "llama", out))) == ["chat_template.jinja"]
    assert failed(judged(room / "llama", room / "merged", adapter)) == {}


def test_what_the_base_has_wrong_is_not_the_merges_fault(room: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(room / "gpt2", base)
    edit(base / "config.json", vocab_size=400, num_nextn_predict_layers=2, tie_word_embeddings=False, dtype="float16")
    edit(base / "generation_config.json", eos_token_id=99_999)
    shutil.copytree(base, tmp_path / "out")
    assert failed(judged(base, tmp_path / "out")) == {}
    for directory in (base, tmp_path / "out"):
        (directory / "config.json").write_text("{")
        (directory / "deep.json").write_text('{"a":' * 900 + "1" + "}" * 900)
    assert failed(judged(base, tmp_path / "out")) == {}
    (tmp_path / "out" / "deep.json").write_text("{}")
    assert list(failed(judged(base, tmp_path / "out"))) == ["deep.json"]


def test_a_head_of_its_own_under_a_tie_flag_is_lost(room: Path, tmp_path: Path) -> None:
    """Base: head and embedding both stored, equal, and tied. Merged: only the head changed, and a loader will not see it."""
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(room / "gpt2", base)
    change_tensors(base, lambda tensors: tensors | {"lm_head.weight": tensors["wte.weight"].clone()})
    shutil.copytree(base, out)
    assert failed(judged(base, out)) == {}
    change_tensors(out, lambda tensors: tensors | {"lm_head.weight": tensors["lm_head.weight"] + 1})
    assert "throws the head away" in failed(judged(base, out))["config.json"]


def test_quantised_tensors_and_their_announcement_belong_together(room: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(room / "gpt2", base)
    quantised = {"transformer.x.weight": torch.zeros(4, 4).to(torch.float8_e4m3fn), "transformer.x.weight_scale_inv": torch.ones(1, 1)}
    change_tensors(base, lambda tensors: tensors | quantised)
    edit(base / "config.json", quantization_config={"quant_method": "fp8"})
    shutil.copytree(base, out)
    assert failed(judged(base, out)) == {}
    edit(out / "config.json", quantization_config=None)
    assert "quantization_config is absent" in failed(judged(base, out))["config.json"]
    change_tensors(out, lambda tensors: {key: tensor for key, tensor in tensors.items() if key not in quantised})
    assert failed(judged(base, out)) == {}, "dequantised, and it says so; whether that was declared is C2's question"


def test_an_architecture_that_transformers_does_not_know_is_compared_as_json(room: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(room / "gpt2", base)
    edit(base / "config.json", model_type="brand_new", architectures=["BrandNewForCausalLM"])
    shutil.copytree(base, out)
    edit(out / "config.json", transformers_version="9.9", _name_or_path="x")
    assert failed(judged(base, out)) == {}
    edit(out / "config.json", n_head=2)
    assert failed(judged(base, out)) == {"config.json": "n_head is 2, 4 was expected"}


def test_slow_vocabularies_and_documents(room: Path, tmp_path: Path) -> None:
    """GPT-2 as first published: vocab.json and merges.txt, no tokenizer.json; transformers saves it as one file, and no documents."""
    base = tmp_path / "base"
    shutil.copytree(room / "gpt2", base)
    vocabulary = json.loads((base / "tokenizer.json").read_text())["model"]["vocab"] | {"<|endoftext|>": 256}
    for name in ("tokenizer.json", "chat_template.jinja"):
        (base / name).unlink()
    (base / "vocab.json").write_text(json.dumps(vocabulary))
    (base / "merges.txt").write_text("#version: 0.2\n")
    (base / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "model_max_length": 64}')
    for name in ("USE_POLICY.md", "LICENSE.txt", "figure.png"):
        (base / name).write_text("x")
    out = saved_again(base, tmp_path / "out")
    assert not (out / "vocab.json").exists()
    assert failed(judged(base, out)) == {}
    (out / "notes.json").write_text("[]")
    assert failed(judged(base, out)) == {}, "a file more is harmless"
    transformers.GPT2Tokenizer(vocab=vocabulary | {"zz": 257}, merges=[]).save_pretrained(out)
    assert "tokenizer.json" in failed(judged(base, out))
