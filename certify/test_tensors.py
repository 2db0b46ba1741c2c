"""One item per tensor of (base index ∪ merged), shard by shard, and one for the accounts of the adapter."""

from collections.abc import Iterator
from functools import partial

from certify.collect import ACCOUNTS, Question
from certify.examination import Examination


def questions(examination: Examination) -> Iterator[Question]:
    """What is asked about tensors: C2, then C3 or C4 inside the same item; and whether every adapter tensor was consumed."""
    yield Question(ACCOUNTS, ACCOUNTS, examination.examine_adapter)
    for shard, name in examination.tensors:
        yield Question(shard, name, partial(examination.examine_tensor, name))
