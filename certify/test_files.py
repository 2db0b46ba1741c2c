"""One item per file of the checkpoint: C1, and nothing else, since a file that cannot be read has no tensors to speak of."""

from collections.abc import Iterator
from functools import partial

from certify.collect import FILES, Question
from certify.examination import Examination


def questions(examination: Examination) -> Iterator[Question]:
    """What is asked about files."""
    for name in examination.files:
        yield Question(FILES, name, partial(examination.examine_file, name))
