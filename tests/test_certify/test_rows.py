"""pytest-html beside the gate: its table for a proxy, the gate's own page where the table would be too long."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from certify import launch, rows
from tests.test_certify.front_checkpoint import SUBJECTS, TOUCHED, Question, make


class Report:
    """What pytest-html registers: something of its own module that writes as the session ends."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.rows: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.rows += [f"{report.outcome} {report.nodeid}"] * (report.when == "call")

    def pytest_sessionfinish(self) -> None:
        self.path.write_text("a table\n" + "\n".join(self.rows))


Report.__module__ = f"{rows.PACKAGE}.report"


class Stand:
    """As much of pytest-html as the gate meets; the package itself is not needed for these tests."""

    def pytest_addoption(self, parser: pytest.Parser) -> None:
        parser.addoption("--html", dest="htmlpath")

    def pytest_configure(self, config: pytest.Config) -> None:
        config.pluginmanager.register(Report(config.option.htmlpath))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture(scope="module")
def red(tmp_path_factory: pytest.TempPathFactory) -> Question:
    return make(tmp_path_factory.mktemp("red"), red=True)


def run(question: Question, html: Path, *, real: bool) -> int:
    words = [*launch.arguments(question.words), "--level=weights", f"--html={html}"]
    if real:
        return int(pytest.main([*words, "--self-contained-html", "-p", "pytest_metadata.plugin", "-p", "pytest_html.plugin"]))
    return int(pytest.main(words, plugins=[Stand()]))


@pytest.mark.parametrize(
    "real", [False, pytest.param(True, marks=pytest.mark.skipif(not find_spec("pytest_html"), reason="no pytest-html"))]
)
@pytest.mark.parametrize("most", [rows.ROWS, SUBJECTS - 10])
def test_the_table_of_a_proxy_and_the_page_of_a_giant(
    most: int, real: bool, red: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rows, "ROWS", most)
    html = tmp_path / "deep" / "out.html" if most < rows.ROWS or real else tmp_path / "out.html"
    assert run(red, html, real=real) == 1
    told, written = capsys.readouterr().out, html.read_text()
    replaced = most < SUBJECTS
    assert ("<h1>REJECTED" in written) == replaced
    assert ("the gate's own page" in told) == replaced
    assert TOUCHED in written


def test_no_old_verdict_stands_if_the_gate_dies(red: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_self: object, _name: str) -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(rows, "ROWS", 1)
    monkeypatch.setattr("certify.examination.Examination.certificate", interrupt)
    (tmp_path / "out.html").write_text("CERTIFIED")
    assert run(red, tmp_path / "out.html", real=False) != 1
    assert not (tmp_path / "out.html").exists()
