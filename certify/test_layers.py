"""One item per decoder layer, and one each for what stands around them: embedding, norm, head."""

from collections.abc import Iterator

from certify.examination import Examination
from certify.question import Question


def questions(examination: Examination) -> Iterator[Question]:
    """What is asked about layers, in the order of the model; none below the level `layers`."""
    return examination.of_layers()
