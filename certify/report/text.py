"""What may be shown: names and sentences out of a checkpoint are somebody else's text, and are made harmless before a person reads them."""

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
LINES = 20  # of one failure; a reader weighs three figures, not three hundred
NAME, LINE = 160, 600  # characters of a name and of a line that are shown


def printable(text: str) -> str:
    """One line without control characters, bidirectional overrides, escape sequences or lone surrogates: they appear as \\x1b, \\u202e …

    Different texts stay different where they hold no backslash of their own.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def identifier(name: str) -> str:
    """A name that can stand in a node id or an attribute; different names stay different."""
    return printable(name.replace("\\", "\\\\")) or "''"


def shortened(text: str, most: int = NAME) -> str:
    """One printable line; of a longer one the beginning, the end, and how much lies between."""
    line = printable(text)
    if len(line) <= most:
        return line
    start, end = most * 2 // 3, most // 3
    return f"{line[:start]} … {len(line) - start - end:,} characters … {line[-end:]}"


def paragraph(text: str, most: int = LINES) -> list[str]:
    """The printable lines of a text, at most `most` of them, the last one saying how many are left out; long lines lose their middle."""
    lines = [shortened(line, LINE) for line in text.splitlines()]
    if len(lines) > most:
        lines = [*lines[: most - 1], f"… and {len(lines) - most + 1} more lines"]
    return lines


def human(count: float) -> str:
    """Bytes with a binary unit: 1.5 GiB."""
    power = 0
    while count >= 1024 and power < len(UNITS) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.0f} {UNITS[power]}" if power == 0 else f"{count:.1f} {UNITS[power]}"


def figure(value: object) -> str:
    """A number as a person reads it: 1,579 · 0.9997 · 3.2e-05."""
    match value:
        case bool() | None:
            return "" if value is None else ("yes" if value else "no")
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.4g}"
        case _:
            return printable(str(value))
