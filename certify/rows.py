"""pytest-html's table has a row per tensor. No browser opens 92,000 of them, so above some thousands the gate's own page takes its place.

Only plain pytest can meet `--html`: `lora-certify run` loads no other plug-in.
"""

from collections.abc import Generator
from pathlib import Path

import pytest

from certify.gate import Gate
from certify.report import put

ROWS = 5_000  # 92,000 are 73 MB, which Chromium does not finish
PACKAGE = "pytest_html"


class Rows:
    """Watches pytest-html's report over one run of the gate."""

    def __init__(self, config: pytest.Config, gate: Gate, path: Path) -> None:
        self.config, self.gate, self.path = config, gate, path
        self.replaced = False

    @pytest.hookimpl(wrapper=True)
    def pytest_collection(self) -> Generator[None, object, object]:
        """Once it is known how many subjects there are; under xdist only here, since the controller has no items."""
        collected = yield
        reports = [plugin for plugin in self.config.pluginmanager.get_plugins() if type(plugin).__module__.split(".")[0] == PACKAGE]
        if reports and sum(self.gate.total.values()) > ROWS:
            self.replaced = True
            for report in reports:
                self.config.pluginmanager.unregister(report)
            self.path.unlink(missing_ok=True)  # an old verdict
        return collected

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write the page, once the gate has judged, and say so."""
        if not self.replaced or self.gate.certificate is None:
            return
        from certify.report import page

        self.path.parent.mkdir(parents=True, exist_ok=True)
        put(self.path, page.render(self.gate.certificate.statement))
        rows = sum(self.gate.total.values())
        terminalreporter.write_line(
            f"  {self.path} is the gate's own page: pytest-html's would have {rows:,} rows, and no browser opens that"
        )
