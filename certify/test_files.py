"""One item per file of the checkpoint: C1 of what holds weights, C7 of what stands beside them and of what the loaders say."""

from collections.abc import Iterator

from certify.examination import Examination
from certify.question import Question


def questions(examination: Examination) -> Iterator[Question]:
    """What is asked about files."""
    return examination.of_files()
