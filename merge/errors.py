"""How we refuse: every error names the thing, what was found, what was expected, and the state of the disk."""

NOTHING_WRITTEN = "Nothing was written."


class MergeError(Exception):
    """A merge that cannot go on. `exit_code` is the process status that the command line ends with."""

    exit_code = 3


class CheckpointError(MergeError):
    """The base checkpoint is damaged, hostile, or in a format that is not merged yet."""


class AdapterError(MergeError):
    """The adapter is damaged, does not fit the base, or asks for something that is not merged yet."""


class OutputError(MergeError):
    """The output directory belongs to something else, is in use, or does not fit on the disk."""


class UndecidedError(MergeError):
    """The base is quantised, and what becomes of that was not said: a choice with consequences is the user's."""

    exit_code = 2


class WriteError(MergeError):
    """Writing began and could not go on; what is done is kept, and the same command continues."""

    exit_code = 4


def listing(lines: list[str], most: int = 12) -> str:
    """Indented lines, at most `most` of them, with a count of those left out."""
    shown = [f"  {line}" for line in lines[:most]]
    if len(lines) > most:
        shown.append(f"  … and {len(lines) - most} more")
    return "\n".join(shown)
