"""Family × feature: one cell per family and per feature here; all of them with MERGEGATE_MATRIX=1 or `python -m tests.matrix`."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from merge.__main__ import app
from tests.matrix import cell, table

CELLS = list(table.cells()) if os.environ.get("MERGEGATE_MATRIX") else table.chosen()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.mark.parametrize(("family", "feature", "refused"), CELLS, ids=[f"{family}-{feature}" for family, feature, _ in CELLS])
def test_cell(family: str, feature: str, refused: str | None, room: Path) -> None:
    if refused:
        cell.refused(family, feature, refused, room)
    else:
        cell.run(family, feature, room)


def test_the_support_table_says_what_the_matrix_shows() -> None:
    assert table.SUPPORT.read_text() == table.text(), "run `python -m tests.matrix --write`"
    assert table.README.read_text() == table.readme(), "run `python -m tests.matrix --write`"
    merged = [cell for cell in table.cells() if cell[2] is None]
    assert len(merged) >= 250
    assert len({family for family, _, _ in merged}) >= 20


def test_the_table_on_the_command_line() -> None:
    shown = CliRunner().invoke(app, ["support", "--json"])
    found = json.loads(shown.stdout)
    assert shown.exit_code == 0
    assert found["cells"]["llama"]["dora"] == "merged"
    assert found["test"].format(family="llama", feature="dora") == "tests/test_merge/test_matrix.py::test_cell[llama-dora]"
    assert "no weight can do that" in found["refused"]["XLORA"]
    text = CliRunner().invoke(app, ["support"]).stdout
    assert "t5: refused: tied embeddings cannot be kept apart" in text
    assert "alora_invocation_tokens" in text
