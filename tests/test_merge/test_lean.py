"""What the command line leaves out of its imports, and that nothing of it stays behind."""

import sys
from pathlib import Path
from typing import Any

import pytest

from merge import lean


def test_hollow_modules_serve_an_import_and_are_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "heavy_part"
    package.mkdir()
    (package / "__init__.py").write_text("def disable(function): return None\nclass Sharded: pass\n")
    (package / "below.py").write_text("REAL = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with lean.without("heavy_part"):
        import heavy_part.below  # type: ignore[import-not-found]

        hollow: Any = heavy_part
        assert hollow.disable(len) is len
        assert hollow.disable(recursive=False)(len) is len
        assert not isinstance(3, hollow.Sharded)
        assert issubclass(type("Mine", (hollow.Sharded,), {}), hollow.Sharded)
    assert "heavy_part" not in sys.modules
    from heavy_part.below import REAL  # type: ignore[import-not-found]

    assert REAL
    del sys.modules["heavy_part"], sys.modules["heavy_part.below"]


def test_what_is_loaded_already_stays() -> None:
    before = sys.modules["json"]
    with lean.without("json"):
        import json
    assert json is before
