"""How far the reading of a large directory has come: a bar on a terminal, now and then a line elsewhere, nothing for what is soon done."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from certify.report.text import human

LARGE = 4 << 30  # bytes: what a disk reads within seconds needs no bar
EVERY = 30.0  # seconds between two lines where nobody watches

Read = Callable[[int], None]  # is told how many bytes were read, by any thread


@contextmanager
def progress(total: int) -> Iterator[Read]:
    """Told on stderr. total  bytes that will be read"""
    if total < LARGE:
        yield lambda _: None
    elif sys.stderr.isatty():
        yield from _bar(total)
    else:
        yield _Lines(total)


def _bar(total: int) -> Iterator[Read]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("  reading"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


class _Lines:
    """A line every half a minute."""

    def __init__(self, total: int) -> None:
        self._total, self._read, self._lock = total, 0, threading.Lock()
        self._began = self._last = time.monotonic()

    def __call__(self, count: int) -> None:
        with self._lock:
            self._read += count
            now = time.monotonic()
            if now - self._last < EVERY:
                return
            self._last, pace = now, self._read / (now - self._began)
            left = (self._total - self._read) / pace
            sys.stderr.write(f"  {human(self._read)} of {human(self._total)} read, {human(pace)}/s, about {left / 60:.0f} min left\n")
