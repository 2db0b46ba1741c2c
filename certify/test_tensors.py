"""One item per tensor of (base index ∪ merged), shard by shard, and one for the accounts of the adapter."""

from collections.abc import Iterator

from certify.examination import Examination
from certify.question import Question


def questions(examination: Examination) -> Iterator[Question]:
    """What is asked about tensors: all checks of a tensor inside one item; and whether every adapter tensor was consumed."""
    return examination.of_tensors()
