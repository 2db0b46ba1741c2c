"""What the tests of interrupted and finished merges share."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_merge.interruption import content, run, work


@pytest.fixture(scope="module")
def pair(llama: Any) -> tuple[Path, Path]:
    return llama.base, llama.adapter


@pytest.fixture(scope="module")
def whole(pair: tuple[Path, Path]) -> dict[str, bytes]:
    """The bytes of an uninterrupted run, beside every other output here: the manifest names the adapter by a relative path."""
    out = pair[0].parent / "whole"
    run(work(pair, out))
    return content(out)


@pytest.fixture
def out(pair: tuple[Path, Path], request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = pair[0].parent / f"out-{abs(hash(request.node.nodeid))}"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
