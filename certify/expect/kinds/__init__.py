"""The kinds of adapter tensors: one room for each, with the rule by which it becomes a part of a tensor's draft."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from certify.errors import NotInterpretedError
from certify.expect.kinds.pairs import settle_pair
from certify.expect.kinds.saved import settle_again, settle_base, settle_saved
from certify.expect.kinds.tokens import settle_tokens
from certify.expect.names import Family, Group
from certify.expect.terms import Terms

if TYPE_CHECKING:
    from certify.expect.accounts import Accounts


def _strange(_: "Accounts", group: Group, __: Terms) -> None:
    raise NotInterpretedError(f"{group.module}: this version does not interpret this kind of adapter tensor")


SETTLE: Final[Mapping[Family, Callable[["Accounts", Group, Terms], None]]] = {
    "pair": settle_pair,
    "base": settle_base,
    "tokens": settle_tokens,
    "saved": settle_saved,
    "again": settle_again,
    "strange": _strange,
}
