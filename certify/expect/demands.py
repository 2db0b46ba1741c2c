"""What an adapter's file must hold, since its own configuration names it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from certify.expect.place import Place
from certify.expect.terms import Terms

if TYPE_CHECKING:
    from certify.expect.accounts import Accounts

ADAPTED = ("linear", "embedding", "convolution", "attention")


def demands(accounts: "Accounts", terms: Terms) -> Iterator[str]:
    """The tensors that were trained by the configuration's own words.

    Experts are demanded one by one only where the file speaks of single experts: today's transformers fuses them, and an adapter trained
    on the fused modules targets them by another field.
    """
    single_experts = any(key in accounts.drafts and place.fused for key, place in accounts.places.all.items())
    for key, place in accounts.places.all.items():
        if terms.targets_parameter(place.parameter) and place.parameter not in accounts.parameters:
            yield place.parameter
        yield from _of(key, place, terms, fused=single_experts, tokens=place.parameter == accounts.places.embedding)
        for alias in accounts.places.aliases(place.parameter):
            if accounts.places.of_parameter(alias) is None and _weight_of(alias, terms):
                yield alias


def _of(key: str, place: Place, terms: Terms, *, fused: bool, tokens: bool) -> Iterator[str]:
    module, _, leaf = place.parameter.rpartition(".")
    adapted = place.kind in ADAPTED and (fused or not place.fused) and terms.targets(place.paths())
    biased = leaf == "bias" and (terms.bias == "all" or (terms.bias == "lora_only" and terms.targets({module})))
    rows = leaf == "weight" and terms.rows_of(module, embedding=tokens)
    if adapted or biased or rows or terms.saves(module):
        yield key


def _weight_of(parameter: str, terms: Terms) -> bool:
    module, _, leaf = parameter.rpartition(".")
    return leaf == "weight" and (terms.targets({module}) or terms.saves(module))
