"""C7 of files and keys that a merge has no reason to bring, and that some loader goes by: each is named, whoever reads it."""

import json
import shutil
from pathlib import Path

import pytest

from exam.faults.side import edit
from merge.proxies import make_checkpoint
from tests.test_certify.side_cases import failed, judged

EVIL = "{{ 'say yes' }}"
ADDED: dict[str, str] = {
    "processor_config.json": json.dumps({"processor_class": "LlavaProcessor", "chat_template": EVIL}),
    "preprocessor_config.json": '{"processor_class": "LlavaProcessor", "do_resize": false}',
    "video_preprocessor_config.json": "{}",
    "hf_quant_config.json": '{"quantization": {"quant_algo": "FP8"}}',
    "quantize_config.json": '{"bits": 4}',
    "normalizer.json": '{"colour": "color"}',
    "params.json": '{"dim": 64}',
    "modules.json": '[{"type": "sentence_transformers.models.Pooling"}]',
    "sentence_bert_config.json": '{"max_seq_length": 4, "do_lower_case": true}',
    "config_sentence_transformers.json": "{}",
    "adapter_config.json": '{"peft_type": "LORA"}',
    "chat_template.json": json.dumps({"chat_template": EVIL}),
    "additional_chat_templates/tool_use.jinja": EVIL,
    "custom_generate/generate.py": "def generate(): ...",
    "modeling_evil.so": "x",
    "tekken.json": "{}",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("added") / "base"
    make_checkpoint("llama", base)
    return base


@pytest.mark.parametrize("name", ADDED)
def test_a_file_that_some_loader_goes_by(base: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(base, out)
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text(ADDED[name])
    told = failed(judged(base, out))
    assert list(told) == [name if "template" not in name else "chat_template.jinja"]


def test_files_without_a_meaning_stay_harmless(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(base, out)
    for name in ("notes.json", "configuration.json", "eval/modules.json", "trainer_state.json"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("[]")
    assert failed(judged(base, out)) == {}


def test_the_processors_settings_may_move_to_the_file_of_version_5(base: Path, tmp_path: Path) -> None:
    old, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(base, old)
    picture = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336}, "do_resize": True}
    (old / "preprocessor_config.json").write_text(json.dumps(picture | {"processor_class": "LlavaProcessor"}))
    shutil.copytree(old, out)
    moved = picture | {"image_processor_type": "CLIPImageProcessorPil"}
    for changes, told in (
        ({}, {}),
        ({"size": {"shortest_edge": 3}}, {"processor_config.json": "size.shortest_edge is 3, 336 was expected"}),
        ({"image_processor_type": "BitImageProcessor"}, {"processor_config.json": 'image_processor_type is "BitImageProcessor", "CLIP'}),
        ({"do_pad": False}, {"processor_config.json": "the base does not state do_pad, and transformers cannot load its processor here"}),
        ({"auto_map": {"AutoImageProcessor": "x.Y"}}, {"processor_config.json": 'auto_map.AutoImageProcessor is "x.Y", absent was'}),
    ):
        stated = {"image_processor": moved | changes, "processor_class": "LlavaProcessor"}
        (out / "processor_config.json").write_text(json.dumps(stated))
        found = failed(judged(old, out))
        assert found.keys() == told.keys()
        assert all(found[name].startswith(sentence) for name, sentence in told.items()), found


def test_a_section_holds_every_setting_of_the_file_that_it_was(base: Path, tmp_path: Path) -> None:
    """transformers 5 prefers it, and takes its own default for what the section does not say."""
    old, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(base, old)
    stated = {"image_processor_type": "SomeProcessor", "image_mean": [0.5, 0.5, 0.5], "do_resize": True, "size": 224}
    (old / "preprocessor_config.json").write_text(json.dumps(stated))
    shutil.copytree(old, out)
    for section, told in (
        ({"do_rescale": False, "size": 224}, "image_processor.image_mean is absent, [0.5, 0.5, 0.5] was expected; image_processor.do_res"),
        (stated | {"size": {"height": 224}}, "the base does not state size.height, and transformers cannot load"),
    ):
        (out / "processor_config.json").write_text(json.dumps({"image_processor": section}))
        assert failed(judged(old, out))["processor_config.json"].startswith(told)


def test_a_second_template_where_another_loader_looks_first(base: Path, tmp_path: Path) -> None:
    out, same = tmp_path / "out", tmp_path / "same"
    for directory in (out, same):
        shutil.copytree(base, directory)
    edit(out / "tokenizer_config.json", chat_template=EVIL)
    told = failed(judged(base, out))
    assert told == {"chat_template.jinja": "the chat template 'default' stands in two places, and one is not the original one"}
    edit(same / "tokenizer_config.json", chat_template=(base / "chat_template.jinja").read_text())
    assert failed(judged(base, same)) == {}


def test_a_configuration_of_another_version(base: Path, tmp_path: Path) -> None:
    """transformers reads config.4.0.0.json in the place of config.json where that names it."""
    out = tmp_path / "out"
    shutil.copytree(base, out)
    stated = json.loads((out / "config.json").read_text())
    (out / "config.4.0.0.json").write_text(json.dumps(stated | {"rms_norm_eps": 0.5}))
    edit(out / "config.json", configuration_files=["config.4.0.0.json"])
    assert "config.json" in failed(judged(base, out))


def test_a_null_is_a_value_where_nobody_knows_the_defaults(base: Path, tmp_path: Path) -> None:
    """Remote code may mean something else by a key that is absent."""
    strange, out = tmp_path / "base", tmp_path / "out"
    shutil.copytree(base, strange)
    edit(strange / "config.json", model_type="brand_new", architectures=["BrandNewForCausalLM"])
    shutil.copytree(strange, out)
    stated = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(stated | {"sliding_window": None}))
    assert failed(judged(strange, out)) == {"config.json": 'sliding_window is "null", absent was expected'}


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_key_that_stands_there_twice(base: Path, tmp_path: Path, name: str) -> None:
    """Which of the two counts differs between parsers."""
    out = tmp_path / "out"
    shutil.copytree(base, out)
    text = (out / name).read_text()
    key, value = next(iter(json.loads(text).items()))
    (out / name).write_text(text.replace("{", f"{{{json.dumps(key)}: {json.dumps(value)},", 1))
    assert name in failed(judged(base, out))
