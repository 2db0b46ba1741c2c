"""The documentation does not lie: every command that it shows exists and parses, every file that it links is there."""

import configparser
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from certify import plugin
from certify.__main__ import app as certify
from merge.__main__ import app as merge

CHECKOUT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for path in (*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*"), *CHECKOUT.glob("certify/*.md"), CHECKOUT / "reports" / "README.md")
    if path.suffix in (".md", ".sh")
)
TOOLS = {"lora-merge": merge, "merge": merge, "lora-certify": certify, "certify": certify}
COMMAND = re.compile(
    r"(?<![\w/.-])(lora-merge|lora-certify|pytest|tox(?= -e)|python \w[\w/]*\.py|"
    r"python -m (?:merge|certify|exam|tests|benchmarks|docs|tox)[\w.]*)(?= |`|$)"
)
FENCE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
END = re.compile(r"\s(?:#|&&|\|\||[|;>]|2>|>>)(?:\s|$)|\s[…)]")  # what follows is not the command's


def commands(path: Path) -> list[list[str]]:
    """Those of a document, or of a script."""
    text = path.read_text(encoding="utf-8")
    return list(shown(text if path.suffix == ".md" else "```\n" + re.sub("^#.*", "", text, flags=re.MULTILINE) + "\n```"))


def shown(text: str) -> Iterator[list[str]]:
    """Commands in fences and in `code`, as words; lines that end with a backslash are joined."""
    fences = [line for fence in FENCE.findall(text) for line in fence.replace("\\\n", " ").splitlines()]
    for line in [*fences, *CODE.findall(FENCE.sub("", text))]:
        for start in COMMAND.finditer(line):
            yield shlex.split(END.split(line[start.start() :])[0].replace("'", " ").replace('"', " "))


def options(command: Any) -> set[str]:
    return {"--help", *(name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))}


def faults(words: list[str]) -> Iterator[str]:
    """What is wrong with one command."""
    name, *rest = words[2:] if words[:2] == ["python", "-m"] else words
    used = {word.partition("=")[0] for word in rest if word.startswith("--")}
    if name in TOOLS and rest and not rest[0].startswith("-"):
        known = typer.main.get_command(TOOLS[name]).commands  # type: ignore[attr-defined]
        for sub in re.split(r"[|,]", rest[0]):
            if sub not in known:
                yield f"{name} has no command {sub}"
            elif unknown := used - options(known[sub]):
                yield f"{name} {sub} has no {', '.join(sorted(unknown))}"
    elif name == "pytest" and any(word.startswith("certify") for word in rest) and (unknown := used - asked() - {"--html", "--junitxml"}):
        yield f"pytest certify/ has no {', '.join(sorted(unknown))}"
    elif name == "tox" and "-e" in rest:
        environments = {section.rpartition(":")[2] for section in _tox().sections()}
        yield from (f"tox has no {env}" for env in rest[rest.index("-e") + 1].split(",") if env not in environments)
    elif name == "python":
        yield from [] if (CHECKOUT / rest[0]).is_file() or "/" not in rest[0] else [f"{rest[0]} is not there"]
    elif "." in name or name == "exam":
        path = CHECKOUT / name.replace(".", "/")
        yield from [] if path.with_suffix(".py").is_file() or (path / "__main__.py").is_file() else [f"{name} is no module"]


def asked() -> set[str]:
    """Options that the gate gives to pytest."""
    parser = pytest.Parser(_ispytest=True)
    plugin.pytest_addoption(parser)
    return {name for group in parser._groups for option in group.options for name in option.names()}


def _tox() -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None)
    found.read(CHECKOUT / "tox.ini")
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_commands_that_are_shown_exist(path: Path) -> None:
    assert [f"{fault}: {shlex.join(words)}" for words in commands(path) for fault in faults(words)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_files_that_are_linked_are_there(path: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize(
    "text",
    [
        "`lora-certify rum --base=B`",
        "```\npython -m merge run --rank 8 \\\n  --base B\n```",
        "`pytest certify/ --basis=B`",
        "`python -m exam.tables`",
        "`tox` `python -m tox -e demos`",
    ],
)
def test_a_lie_is_seen(text: str) -> None:
    assert [fault for words in shown(text) for fault in faults(words)] != []


def test_many_commands_are_seen() -> None:
    seen = [words for path in DOCUMENTS for words in commands(path)]
    assert len(seen) > 60
    assert sum("--base" in " ".join(words) for words in seen) > 15
