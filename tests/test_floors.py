"""The house's one rule: imports run downwards, the wings never import each other, and the gate never imports the engine."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = [  # the bottom first; modules of one set may import each other only within the same package
    {"errors", "lean"},
    {"catalog", "operation", "nametable"},
    {
        "names",
        "adapters",
        "encodings",
        "rounding",
        "architecture",
        "source",
        "adapter_files",
        "sink",
        "journal",
        "manifest",
        "monitor",
        "side_files",
    },
    {"placement", "planner", "shards", "arithmetic", "subspace", "fidelity", "storing"},
    {"runners"},
    {"task"},
    {"output"},
    {"engine", "display", "forecast", "proxies"},
    {"rehearse"},
    {"commands"},
    {"__main__"},
]
PURE = {"names", "adapters", "encodings", "rounding", "placement", "planner", "shards", "arithmetic", "subspace", "fidelity", "storing"}
EFFECTS = {"architecture", "source", "adapter_files", "sink", "journal", "manifest", "monitor", "side_files"}
FORBIDDEN_TO_PURE = {"os", "pathlib", "time", "random", "peft", "transformers", "subprocess", "shutil", "threading"}


def _imports(path: Path) -> set[str]:
    """Every module that a file imports at run time, dotted; `from merge import plan` counts as merge.plan."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found


def _room(path: Path) -> str:
    return path.relative_to(ROOT / "merge").parts[0].removesuffix(".py")


def _rooms_used(path: Path) -> set[str]:
    rooms = {p.name.removesuffix(".py") for p in (ROOT / "merge").iterdir()}
    return {parts[1] for name in _imports(path) if (parts := name.split("."))[0] == "merge" and len(parts) > 1 and parts[1] in rooms}


MERGE = sorted(path for path in (ROOT / "merge").rglob("*.py") if path.parent != ROOT / "merge" or path.name != "__init__.py")


@pytest.mark.parametrize("path", MERGE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_run_downwards(path: Path) -> None:
    level = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    room = _room(path)
    assert room in level, f"{room} has no floor"
    for used in _rooms_used(path) - {room}:
        assert level[used] <= level[room], f"{room} (floor {level[room]}) imports {used} (floor {level[used]})"
        assert not ({room, used} & PURE and {room, used} & EFFECTS), f"the wings meet: {room} imports {used}"


@pytest.mark.parametrize("path", [p for p in MERGE if _room(p) in PURE], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_pure_wing_has_no_effects(path: Path) -> None:
    assert not {name.split(".")[0] for name in _imports(path)} & FORBIDDEN_TO_PURE


@pytest.mark.parametrize("path", sorted((ROOT / "certify").rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_gate_never_imports_the_engine(path: Path) -> None:
    assert "merge" not in {name.split(".")[0] for name in _imports(path)}


@pytest.mark.parametrize(
    "path", [p for p in MERGE if _room(p) not in ("proxies", "tuners")], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_a_plain_merge_does_not_import_peft(path: Path) -> None:
    assert "peft" not in {name.split(".")[0] for name in _imports(path)}
