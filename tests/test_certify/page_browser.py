"""A real Chromium without a window, driven through its own pipe: no library, no port, nothing that leaves the machine."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = next((found for name in ("chromium", "google-chrome", "chromium-browser") if (found := shutil.which(name))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 60.0  # seconds


@dataclass
class Page:
    """One tab. said: what the console and the browser's log said; asked: every address that was requested."""

    out: int
    back: int
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    session: str = ""
    _events: list[dict[str, Any]] = field(default_factory=list)
    _last: int = 0
    _rest: bytes = b""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its answer."""
        self._last += 1
        asked: dict[str, Any] = {"id": self._last, "method": method, "params": params} | (
            {"sessionId": self.session} if self.session else {}
        )
        os.write(self.out, json.dumps(asked).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._last:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])

    def open(self, path: Path, width: int = 1280, height: int = 900, *, dark: bool = False) -> float:
        """Load a file, at a size; seconds until it is loaded and drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self._events.clear()
        began = time.monotonic()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._next()
        self.value("new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        return time.monotonic() - began

    def value(self, expression: str) -> Any:
        """What a JavaScript expression, or its promise, is."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, x: float, y: float) -> None:
        """A press of the mouse."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))

    def print(self, path: Path) -> int:
        """A PDF as the page's own style wants it; how many pages it has."""
        printed = base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"])
        path.write_bytes(printed)
        return printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ")

    def memory(self) -> dict[str, int]:
        """Elements, and bytes that the page's scripts and nodes hold."""
        self.call("Performance.enable")
        told = {entry["name"]: int(entry["value"]) for entry in self.call("Performance.getMetrics")["metrics"]}
        return {name: told[name] for name in ("Nodes", "JSHeapUsedSize")}

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self.back], [], [], PATIENCE)
            assert ready, "Chromium does not answer"
            self._rest += os.read(self.back, 1 << 20)
        raw, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        if "method" in message:
            self._events.append(message)
            self._note(message["method"], message["params"])
        return message

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.consoleAPICalled":
            self.said.append(str(params["args"]))
        elif method == "Runtime.exceptionThrown":
            self.said.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded":
            self.said.append(str(params["entry"]["text"]))
        elif method == "Network.requestWillBeSent":
            self.asked.append(str(params["request"]["url"]))


@contextmanager
def browser() -> Iterator[tuple[Page, int]]:
    """A fresh browser with one tab, and its process id; gone at the end."""
    assert CHROMIUM is not None
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as room:

        def wire() -> None:  # Chromium reads commands from descriptor 3, and answers on 4
            spare = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        command = [CHROMIUM, *FLAGS, f"--user-data-dir={room}", "about:blank"]
        process = subprocess.Popen(command, preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            page = Page(ours_out, ours_in)
            target = next(entry for entry in page.call("Target.getTargets")["targetInfos"] if entry["type"] == "page")
            page.session = page.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            yield page, process.pid
        finally:
            process.terminate()
            process.wait(PATIENCE)
            os.close(ours_out)
            os.close(ours_in)
