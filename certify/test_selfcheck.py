"""Two items about the gate itself: does its arithmetic agree with PEFT's, and does it see what is planted in this run's tensors."""

from collections.abc import Iterator

from certify.examination import Examination
from certify.question import Question


def questions(examination: Examination) -> Iterator[Question]:
    """What the gate asks about itself."""
    return examination.of_itself()
