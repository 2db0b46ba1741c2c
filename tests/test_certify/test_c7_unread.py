"""C7 of keys that transformers passes over as it loads: what the base, or the adapter's tokenizer, does not state is a finding."""

import json
import shutil
from pathlib import Path

import pytest
import transformers

import merge
from certify.checks.c7_unread import unread_problems
from certify.expect.meaning import config_meaning, without_noise
from exam.faults.side import edit
from merge.proxies import make_adapter, make_checkpoint
from tests.test_certify.side_cases import CODE, PADDING, PLAN, TRUNCATION, UNREAD, failed, in_version_4, judged, saved_again

OF_ROPE = ("llama", "gpt_oss", "gemma3", "bamba", "muse_spark", "nemo_speechlm")  # each reads its rotary embedding in its own way


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with an adapter and a sound merge by the engine beside it."""
    room = tmp_path_factory.mktemp("unread")
    make_checkpoint("llama", room / "llama")
    make_adapter(room / "llama", room / "adapter")
    merge.merge(room / "llama", room / "adapter", room / "merged")
    return room


@pytest.mark.parametrize("planted", UNREAD)
def test_what_transformers_passes_over_must_be_the_bases(room: Path, tmp_path: Path, planted: str) -> None:
    file, changes, sentence = UNREAD[planted]
    shutil.copytree(room / "merged", tmp_path / "out")
    edit(tmp_path / "out" / file, **changes)
    told = failed(judged(room / "llama", tmp_path / "out"))
    assert list(told) == [file]
    assert sentence in told[file]


def test_what_transformers_passes_over_may_be_the_bases_own(room: Path, tmp_path: Path) -> None:
    """The same keys in the base: copied, or lost and rewritten as transformers saves, they are sound; changed, they are not."""
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(room / "llama", base)
    edit(base / "tokenizer_config.json", auto_map=CODE, fast_tokenizer_files=["tokenizer.json"])
    edit(base / "tokenizer.json", truncation=TRUNCATION, padding=PADDING)
    edit(base / "config.json", base_model_tp_plan=PLAN, torch_dtype="float16", temperature=0.1)
    shutil.copytree(base, out)
    edit(out / "config.json", transformers_version="9.9")
    edit(out / "tokenizer_config.json", name_or_path="x")
    edit(out / "tokenizer.json", version="1.0")
    assert failed(judged(base, out)) == {}
    assert failed(judged(base, saved_again(base, tmp_path / "again"))) == {}
    edit(out / "config.json", base_model_tp_plan=PLAN | {"x": "colwise"})
    edit(out / "tokenizer.json", truncation=TRUNCATION | {"max_length": 2})
    edit(out / "tokenizer_config.json", auto_map=None)
    assert failed(judged(base, out)) == {
        "config.json": 'base_model_tp_plan.x is "colwise", absent was expected',
        "tokenizer.json": "truncation.max_length is 2, 1 was expected",
        "tokenizer_config.json": 'auto_map is absent, {"AutoTokenizer": ["evil/repo--tok.Tok", null]} was expected',
    }


def test_settings_of_generation_that_version_4_would_make_anew(room: Path, tmp_path: Path) -> None:
    """It does so where the file says that it was derived from config.json; a file may stop to say so, and a new one may say it."""
    base, out, new = tmp_path / "base", tmp_path / "out", tmp_path / "new"
    name = "generation_config.json"
    shutil.copytree(room / "llama", base)
    shutil.copytree(room / "llama", out)
    edit(out / name, _from_model_config=None)
    assert failed(judged(base, out)) == {}
    edit(base / name, _from_model_config=None)
    edit(out / name, _from_model_config=True)
    assert failed(judged(base, out)) == {name: "_from_model_config is true, absent was expected"}
    (base / name).unlink()
    shutil.copytree(base, new)
    (new / name).write_text('{"_from_model_config": true, "bos_token_id": 256, "eos_token_id": 257}')
    assert failed(judged(base, new)) == {}


def test_two_dtypes_that_the_base_does_not_state_side_by_side_disagree(room: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(room / "llama", base)
    edit(base / "config.json", dtype=None, torch_dtype="float16")
    shutil.copytree(base, out)
    assert failed(judged(base, out)) == {}, "the base's own word, though its tensors are bfloat16"
    edit(out / "config.json", dtype="bfloat16")
    assert failed(judged(base, out)) == {"config.json": "dtype is bfloat16, yet torch_dtype beside it is float16"}
    edit(out / "config.json", dtype="bfloat16", torch_dtype="torch.bfloat16")
    assert failed(judged(base, out)) == {}


def test_a_tokenizer_of_the_adapter_may_state_what_the_bases_does_not(room: Path, tmp_path: Path) -> None:
    """Saved after a training run: tokenizers keep the truncation of the last call."""
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    shutil.copytree(room / "adapter", adapter)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(room / "llama" / name, adapter / name)
    edit(adapter / "tokenizer.json", truncation=TRUNCATION)
    edit(adapter / "tokenizer_config.json", auto_map=CODE)
    merge.merge(room / "llama", adapter, out)
    assert failed(judged(room / "llama", out, adapter)) == {}
    assert list(failed(judged(room / "llama", out))) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("model_type", [kind for kind in OF_ROPE if kind in transformers.CONFIG_MAPPING])  # 5.21 does not know the last
def test_version_4_wrote_the_same_in_other_words(tmp_path: Path, model_type: str) -> None:
    transformers.AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    expected, theirs = json.loads(path.read_text()), config_meaning(tmp_path)
    found = in_version_4(json.loads(json.dumps(theirs)))
    path.write_text(json.dumps(found))
    ours = config_meaning(tmp_path)
    assert ours is not None
    assert theirs is not None
    assert unread_problems(without_noise(found), without_noise(expected), ours, theirs) == []
    planned = without_noise(found) | {"base_model_tp_plan": PLAN}
    assert unread_problems(planned, without_noise(expected), ours, theirs) != []


def test_the_pattern_of_layers_that_version_4_wrote(room: Path, tmp_path: Path) -> None:
    """Cohere 2, saved again by 4.5x: the pattern says what layer_types says, or something else, which other loaders obey."""
    base, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(room / "llama", base)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    edit(base / "config.json", model_type="cohere2", architectures=["Cohere2ForCausalLM"], layer_types=kinds, sliding_window=16)
    shutil.copytree(base, out)
    edit(out / "config.json", _sliding_window_pattern=2, _flash_attn_2_enabled=True)
    assert failed(judged(base, out)) == {}
    edit(out / "config.json", _sliding_window_pattern=3)
    assert failed(judged(base, out)) == {"config.json": "_sliding_window_pattern is 3, absent was expected"}
    edit(out / "config.json", _sliding_window_pattern=2, layer_types=kinds[::-1][:2] + kinds[1:2])
    assert "layer_types is" in failed(judged(base, out))["config.json"]
