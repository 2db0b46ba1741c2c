"""What people sign: certificate.json for machines, junit.xml and summary.md for continuous integration, index.html for the reviewer."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from certify.finding import Finding

if TYPE_CHECKING:
    from certify.verdict import Certificate

CERTIFICATE, JUNIT, PAGE, SUMMARY = "certificate.json", "junit.xml", "index.html", "summary.md"
NAMES = (CERTIFICATE, JUNIT, PAGE, SUMMARY)
SIGNATURE = f"{CERTIFICATE}.sig"  # where `lora-certify sign` puts it: it is about the bytes of one certificate


def clear(directory: Path) -> None:
    """Make the directory, and remove an earlier report and its signature: if this run dies, no old verdict may stand there.

    Raises OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in (*NAMES, SIGNATURE):
        (directory / name).unlink(missing_ok=True)


def write(certificate: "Certificate", findings: Iterable[Finding], directory: Path) -> None:
    """Write the four files; the certificate last, so that it never stands alone. Raises OSError."""
    from certify.report import junit, markdown, page

    clear(directory)
    put(directory / PAGE, page.render(certificate.statement))
    put(directory / SUMMARY, markdown.render(certificate.statement))
    put(directory / JUNIT, junit.render(certificate, findings))
    put(directory / CERTIFICATE, certificate.to_json())


def put(path: Path, text: str) -> None:
    """Write under another name, then rename: a reader never sees half a file."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)  # it may be a link to somewhere
    partial.write_bytes(text.encode("utf-8", "backslashreplace"))  # a lone surrogate in a name is \udXXX, which JSON can say
    partial.replace(path)
