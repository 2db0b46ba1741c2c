"""One item: the whole model's predictions."""

from collections.abc import Iterator

from certify.examination import Examination
from certify.question import Question


def questions(examination: Examination) -> Iterator[Question]:
    """What is asked about the model as a whole, at the level `logits`."""
    return examination.of_logits()
