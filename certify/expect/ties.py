"""Tied weights: changed alike they stay one tensor; changed differently each needs its own, and the configuration must untie them."""

from typing import NamedTuple

from certify.errors import NotInterpretedError
from certify.expect.draft import Draft, alike
from certify.expect.place import Names


class Tie(NamedTuple):
    """key: of the tensor on disk      alias: where the other weight lies, or would lie      alone: the base has no tensor for it"""

    key: str
    alias: str
    alone: bool


def ties(places: Names) -> dict[str, list[Tie]]:
    """Tensor on disk → the weights that are tied to it."""
    found: dict[str, list[Tie]] = {}
    for key, place in places.all.items():
        for alias in places.aliases(place.parameter):
            own = places.of_parameter(alias)
            found.setdefault(key, []).append(Tie(key, own.key if own else alias, own is None))
    return found


def untied(tie: Tie, drafts: dict[str, Draft]) -> bool:
    """Settles one tie in `drafts`; True if the two weights differ from now on. Raises DamagedError where an adapter's file ends early.

    Replaced rows are shared by what is tied, and so is a copy of the embedding that was saved untrained.
    """
    one, other = drafts.get(tie.key), drafts.get(tie.alias)
    if one is None and other is None:
        return False
    mine, theirs = one or Draft(), other or Draft()
    if mine.tokens and not theirs.tokens:
        theirs.tokens, theirs.token_rows, theirs.weight = mine.tokens, mine.token_rows, mine.weight
    for here, there in ((mine, theirs), (theirs, mine)):
        if here.snapshot and there.start is None:
            there.start, there.snapshot, there.weight = here.start, True, here.weight
    if alike(mine, theirs):
        drafts[tie.key] = mine
        drafts.pop(tie.alias, None)
        if not tie.alone:
            drafts[tie.alias] = theirs
        return False
    for key, draft in ((tie.key, mine), (tie.alias, theirs)):
        if draft.parts or draft.replacing:
            drafts[key] = draft
    return True


def refuse_many(key: str, tied: list[Tie]) -> None:
    """Raises NotInterpretedError where more than two weights would have to part."""
    if len(tied) > 1:
        raise NotInterpretedError(f"{key} is shared by {len(tied) + 1} weights; how they part is not interpreted")
