"""trainable_token_indices: rows of an embedding that are replaced; PEFT calls the tensor a delta, and it is none."""

from typing import TYPE_CHECKING

from certify.errors import DamagedError, NotInterpretedError
from certify.expect.kinds.pairs import refuse_odd
from certify.expect.names import Group
from certify.expect.terms import Terms

if TYPE_CHECKING:
    from certify.expect.accounts import Accounts


def settle_tokens(accounts: "Accounts", group: Group, terms: Terms) -> None:
    """(rows, width) in the file, the row numbers in the configuration. What is tied to the embedding shares the rows."""
    (name,) = group.names.values()
    weight = f"{group.module}.weight"
    place = accounts.place(weight)
    accounts.known_dtypes(place.key, name)
    refuse_odd(accounts, place.parameter, terms)
    if head := accounts.places.biased(place.parameter):
        raise NotInterpretedError(f"{place.key}: PEFT leaves the bias of {head} out while rows of its weight are trained")
    source = accounts.places.source(place.parameter) or place.parameter  # a grown vocabulary's rows are saved for the head as well
    embedding = source == accounts.places.embedding
    rows = terms.rows_of(group.module, embedding=embedding) or terms.rows_of(source.removesuffix(".weight"), embedding=embedding)
    shape = accounts.base.tensors[place.key].shape
    if not rows:
        raise DamagedError(f"no field of the adapter's configuration says which rows of {place.key} it replaces")
    if accounts.tensor(name).shape != (len(rows), *shape[1:]) or len(set(rows)) != len(rows):
        raise DamagedError(f"{accounts.tensor(name).shape} does not fit {len(rows)} rows of {place.key} {shape}")
    draft = accounts.draft(accounts.key(place))
    draft.tokens, draft.token_rows = rows, accounts.tensor(name)
