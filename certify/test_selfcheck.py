"""Two items about the gate itself: does its arithmetic agree with PEFT's, and does it see what is planted in this run's tensors."""

from collections.abc import Iterator
from functools import partial

from certify.collect import SELF_CHECK, Question
from certify.examination import Examination


def questions(examination: Examination) -> Iterator[Question]:
    """What the gate asks about itself."""
    for subject in examination.self_checks:
        yield Question(SELF_CHECK, subject, partial(examination.examine_itself, subject))
