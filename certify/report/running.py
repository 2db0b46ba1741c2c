"""junit.xml while the run goes on: whole at every moment, so that a killed run leaves a file that can be read, and that is red.

Cases are written before the closing tags, which are written anew each time. The last case says that the run has not ended; the report
of a run that ends takes the place of the file.
"""

import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from certify.finding import Finding
from certify.report.junit import elements

HEAD = "<?xml version='1.0' encoding='utf-8'?>\n<testsuites name=\"certify\">\n  <testsuite name=\"certify\">\n"
FOOT = """    <testcase classname="certify" name="the run" time="0">
      <error message="the run has not ended: it goes on, or it was killed" type="INCOMPLETE">{run:,} of {expected:,} subjects judged</error>
    </testcase>
  </testsuite>
</testsuites>
"""
PAUSE = 1.0  # seconds between two writes


class Running:
    """The file of one run. expected: how many subjects there are. Raises OSError."""

    def __init__(self, path: Path, expected: int) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        self._expected, self._run, self._end, self._written = expected, 0, 0, time.monotonic()
        self._waiting = [HEAD]
        self._write()

    def add(self, findings: Sequence[Finding]) -> None:
        """What was found about one subject."""
        self._run += 1
        self._waiting += [f"    {ET.tostring(case, encoding='unicode')}\n" for case in elements(findings)]
        if time.monotonic() - self._written > PAUSE:
            self._write()

    def close(self) -> None:
        """The file stays as it is until the report replaces it."""
        os.close(self._file)

    def _write(self) -> None:
        """One write for new cases and closing tags: a process that is killed leaves either the file before it or the file after it."""
        data = "".join(self._waiting).encode("utf-8", "backslashreplace")
        foot = FOOT.format(run=self._run, expected=self._expected).encode()
        os.pwrite(self._file, data + foot, self._end)
        self._end += len(data)
        self._waiting, self._written = [], time.monotonic()
