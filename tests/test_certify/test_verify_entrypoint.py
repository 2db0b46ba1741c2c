"""docs/entrypoint.sh, as a container starts it: a real shell, a real process, and a command that runs only behind a verified directory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import certify
from tests.test_certify.release import Release

CHECKOUT = Path(certify.__file__).parents[1]
DOCS = CHECKOUT / "docs"


def start(release: Release, *command: str, **changed: str | None) -> subprocess.CompletedProcess[str]:
    """The entrypoint in a shell that finds this checkout's lora-certify; changed: of the environment, None: not set."""
    tool = release.room / "bin" / "lora-certify"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m certify "$@"\n')
    tool.chmod(0o755)
    asked = {"MERGED": str(release.merged), "CERTIFICATE": str(release.certificate), "PUBLIC_KEY": str(release.room / "key.pub")}
    environment: dict[str, str | None] = {"PATH": f"{tool.parent}:/usr/bin:/bin", "PYTHONPATH": str(CHECKOUT), **asked, **changed}
    given = {name: value for name, value in environment.items() if value is not None}
    return subprocess.run([DOCS / "entrypoint.sh", *command], cwd=release.merged, env=given, capture_output=True, text=True, check=False)


def test_the_command_runs_behind_a_verified_directory(release: Release) -> None:
    end = start(release, "sh", "-c", 'echo "serving $1"; exit 7', "sh", "a model")
    assert end.returncode == 7
    assert "Verified: " in end.stdout
    assert end.stdout.endswith("serving a model\n")


def test_the_command_does_not_run_before_a_spoiled_one(release: Release) -> None:
    os.truncate(release.merged / "config.json", 3)
    end = start(release, "echo", "serving")
    assert end.returncode == 1
    assert end.stdout == ""
    assert end.stderr == "Refused: config.json is not what was certified (sha256).\n"


@pytest.mark.parametrize(
    ("changed", "code", "told"),
    [
        ({"LEVEL": "logits"}, 1, "lower than logits"),
        ({"EXPECT_DIGEST": "0" * 64}, 1, "another release"),
        ({"PUBLIC_KEY": None}, 4, "either --public-key or --root"),
        ({"MERGED": None}, 4, "set MERGED, CERTIFICATE"),
        ({"CERTIFICATE": ""}, 4, "set MERGED, CERTIFICATE"),
        ({"PATH": "/usr/bin:/bin"}, 127, "lora-certify"),
    ],
)
def test_nothing_runs_where_the_question_is_incomplete(changed: dict[str, str | None], code: int, told: str, release: Release) -> None:
    end = start(release, "echo", "serving", **changed)
    assert end.returncode == code
    assert told in end.stderr
    assert "serving" not in end.stdout


def test_nothing_in_the_directory_is_executed(release: Release) -> None:
    """The process works inside it."""
    for name in ("certify", "cryptography", "json", "model_signing", "OpenSSL", "sitecustomize", "typer", "usercustomize"):
        (release.merged / f"{name}.py").write_text(f"import pathlib; pathlib.Path({str(release.room)!r}, 'EXECUTED').touch()")
    end = start(release, "echo", "serving")
    assert not (release.room / "EXECUTED").exists()
    assert end.returncode == 1
    assert "OpenSSL.py and 7 more are not certified" in end.stderr


def test_an_image_without_torch_suffices(release: Release) -> None:
    poison = release.room / "poison"
    poison.mkdir()
    for name in ("hypothesis", "jinja2", "numpy", "peft", "pytest", "safetensors", "torch", "transformers", "xxhash"):
        (poison / f"{name}.py").write_text("raise ImportError")
    end = start(release, "true", PYTHONPATH=f"{poison}:{CHECKOUT}")
    assert end.returncode == 0, end.stderr


def test_without_a_command(release: Release) -> None:
    assert start(release).returncode == 4


def blocks(heading: str) -> list[str]:
    """The shell blocks of one section of CERTIFICATE.md; what installs something is left out."""
    text = (CHECKOUT / "certify" / "CERTIFICATE.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [re.sub("pip install .*\n", "", block) for block in re.findall(r"```\n(.+?)```", section, re.DOTALL)]


def test_the_recipes_of_the_documentation(release: Release) -> None:
    """Run as they stand, with lora-certify and without."""
    pair, x509, authority, _ = blocks("Signing and verifying")  # the last needs a network
    alone = blocks("Without this project")
    assert len(alone) == 4
    (release.room / "DIR").mkdir()
    release.certificate.rename(release.room / "DIR" / "certificate.json")
    (release.room / "MERGED").symlink_to(release.merged)
    start(release, "true")  # makes bin/lora-certify
    path = f"{release.room / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = "".join([pair, "cp DIR/certificate.json* .\n", *alone, authority, x509])
    given = os.environ | {"PATH": path, "PYTHONPATH": str(CHECKOUT)}
    end = subprocess.run(["sh", "-eu", "-c", script], cwd=release.room, env=given, capture_output=True, text=True, check=False)
    assert end.returncode == 0, end.stderr
    told = [line for line in end.stdout.splitlines() if not line.startswith(" ")]
    digests = {line.split()[1] for line in end.stdout.splitlines() if line.startswith("  digest")}
    assert [f"{digest}  -" for digest in digests] == [line for line in told if line.endswith("  -")]
    assert [line.split()[0] for line in told if ":" in line] == ["Signed:", "Verified:", "Signed:", "Verified:"]
    assert [line for line in told if ":" not in line and not line.endswith("  -")] == [
        "Verification succeeded",
        "Verified OK",
        "it is this file",
    ]
    assert "signed by  CN=Release desk,O=Example = release@example.org, until" in end.stdout


@pytest.mark.parametrize("name", ["SECURITY.md", "CONTRIBUTING.md", "certify/CERTIFICATE.md", "docs/deploy-gate.md", "docs/ci.md"])
def test_what_the_documentation_names_is_there(name: str) -> None:
    text = (CHECKOUT / name).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not ((CHECKOUT / name).parent / link).exists()] == []
    tests = {path.name for path in (CHECKOUT / "tests").rglob("*.py")}
    assert [test for test in re.findall(r"\btest_\w+\.py", text) if test not in tests] == []
    files = re.findall(r"`((?:certify|merge|exam|tests|docs)/[\w./-]+)`", text)
    assert [file for file in files if not (CHECKOUT / file).exists()] == []
