"""One item per file of the checkpoint: C1 of what holds weights, C7 of what stands beside them."""

from collections.abc import Iterator
from functools import partial

from certify.collect import FILES, Question
from certify.examination import Examination


def questions(examination: Examination) -> Iterator[Question]:
    """What is asked about files."""
    for name in examination.files:
        yield Question(FILES, name, partial(examination.examine_file, name))
    for name in examination.side_files:
        yield Question(FILES, name, partial(examination.examine_side_file, name))
