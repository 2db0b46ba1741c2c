"""The page in a real browser: nothing runs, nothing is fetched, nothing breaks; it prints to two pages and reads well to everybody."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from certify import report
from tests.test_certify.page_browser import CHROMIUM, Page, browser
from tests.test_certify.test_front_report import HOSTILE, certificate

AXE = os.environ.get("AXE_CORE")  # axe.min.js, which `tox -e page` brings
LONG = ["model.layers.0." + "x" * 10_000, *(f"model.layers.{layer}.<b>{layer}</b>.weight" for layer in range(40))]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH")


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with browser() as (page, _):
        yield page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("page")
    told = certificate(names=[*HOSTILE, *LONG])
    report.write(told, told.findings, room)
    return room / report.PAGE


@pytest.mark.parametrize("width", [1280, 420])
@pytest.mark.parametrize("dark", [False, True])
def test_hostile_names_neither_run_nor_break_the_layout(width: int, dark: bool, tab: Page, made: Path) -> None:
    tab.said.clear()
    tab.asked.clear()
    tab.open(made, width, dark=dark)
    assert tab.said == []
    assert tab.asked == [made.as_uri()]
    assert tab.value("document.querySelectorAll('b b, script, img').length") == 0
    assert tab.value("document.documentElement.scrollWidth") <= width


def test_a_click_on_a_square_shows_its_row(tab: Page, made: Path) -> None:
    tab.open(made)
    assert tab.value("[...document.querySelectorAll('.kind')].every(kind => kind.offsetHeight === 0)")
    box = tab.value(
        "(() => { const square = document.querySelector('.map a rect'); square.scrollIntoView({block: 'center'});"
        " const {x, y, width, height} = square.getBoundingClientRect(); return [x + width / 2, y + height / 2]; })()"
    )
    tab.click(*box)
    assert tab.value("document.querySelector('tr:target').offsetHeight") > 0


def test_it_prints_to_two_pages(tab: Page, made: Path, tmp_path: Path) -> None:
    tab.open(made)
    assert tab.print(tmp_path / "page.pdf") == 2


def test_in_print_page_one_ends_with_the_blind_spots_and_the_signature(tab: Page, made: Path) -> None:
    tab.open(made, 703, 1043)  # A4 less its margins, at 96 dots per inch
    tab.call("Emulation.setEmulatedMedia", media="print")
    heights = "['.first', '.two', '.two > div:last-child', '.sign'].map(one => document.querySelector(one).getBoundingClientRect().bottom)"
    first, both, blind, signature = tab.value(heights)
    tab.call("Emulation.setEmulatedMedia", media="")
    assert blind <= both + 1 < signature <= first + 1


@pytest.mark.skipif(AXE is None, reason="AXE_CORE names no axe.min.js: `tox -e page` has one")
@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(dark: bool, tab: Page, made: Path) -> None:
    assert AXE is not None
    tab.call("Page.setBypassCSP", enabled=True)
    tab.open(made, dark=dark)
    tab.value(f"{Path(AXE).read_text()};1")
    found = json.loads(tab.value("axe.run().then(told => JSON.stringify(told.violations.map(v => [v.id, v.nodes.map(n => n.html)])))"))
    tab.call("Page.setBypassCSP", enabled=False)
    assert found == []
