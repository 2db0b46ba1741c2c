"""What the tests share: proxies with their adapters, made once per session, offline."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import transformers
from jsonschema import Draft202012Validator

from certify.examination import Examination
from certify.signoff.stated import SCHEMA
from merge.proxies import make_adapter, make_checkpoint

if TYPE_CHECKING:
    from tests.test_certify.release import Release

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def misfits() -> Iterator[list[str]]:
    """What is wrong, by the published schema, with certificates that tests have had the gate make in this process."""
    validator, made, found = Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))), Examination.certificate, []

    def checked(self: Examination, *given: Any, **named: Any) -> Any:
        certificate = made(self, *given, **named)
        found.extend(f"{error.json_path}: {error.message:.300}" for error in validator.iter_errors(json.loads(certificate.to_json())))
        return certificate

    Examination.certificate = checked  # type: ignore[method-assign]
    yield found
    Examination.certificate = made  # type: ignore[method-assign]


@pytest.fixture(autouse=True)
def every_certificate_fits_the_published_schema(misfits: list[str]) -> Iterator[None]:
    """Asked of each test."""
    yield
    told, misfits[:] = list(misfits), []
    assert not told


@dataclass(frozen=True)
class Pair:
    """A base and an adapter for it, side by side; neither may be changed."""

    base: Path
    adapter: Path


def _pair(room: Path, family: str, *, layers: int | None = None, style: str = "peft") -> Pair:
    base = room / "base"
    if not base.exists():
        make_checkpoint(family, base, layers=layers)
    return Pair(base, make_adapter(base, room / style, style=style))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _pair(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _pair(tmp_path_factory.mktemp("qwen2"), "qwen2")


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _pair(tmp_path_factory.mktemp("gpt2"), "gpt2")


@pytest.fixture(scope="session")
def deepseek(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Three layers and the MTP layer; the adapter is on attention."""
    return _pair(tmp_path_factory.mktemp("deepseek"), "deepseek-v3")


@pytest.fixture(scope="session")
def deepseek_experts(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Three layers; a ColossalAI-style adapter on every dense, shared and routed expert."""
    return _pair(tmp_path_factory.mktemp("deepseek-experts"), "deepseek-v3", style="colossalai")


@pytest.fixture(scope="session")
def deep_room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deepseek-61")


@pytest.fixture(scope="session")
def deep(deep_room: Path) -> Pair:
    """61 layers and the MTP layer, which transformers drops without a word; the adapter is on attention."""
    return _pair(deep_room, "deepseek-v3", layers=61)


@pytest.fixture(scope="session")
def deep_experts(deep_room: Path) -> Pair:
    """The same base; a ColossalAI-style adapter on every dense, shared and routed expert."""
    return _pair(deep_room, "deepseek-v3", layers=61, style="colossalai")


@pytest.fixture(scope="session")
def signed(tmp_path_factory: pytest.TempPathFactory) -> "Release":
    """A release that was certified and signed; not to be changed."""
    from tests.test_certify.release import make_release

    return make_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def release(signed: "Release", tmp_path: Path) -> "Release":
    """A copy of it, that a test may spoil."""
    return signed.copy(tmp_path / "a release")
