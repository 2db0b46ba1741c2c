"""Values that take the place of the base's: modules saved whole, trained biases, copies of embeddings that PEFT saves beside an adapter."""

from typing import TYPE_CHECKING

import torch

from certify.errors import DamagedError, NotInterpretedError
from certify.expect.names import PREFIX, Group
from certify.expect.terms import Terms
from certify.inputs.adapter import AdapterTensor

if TYPE_CHECKING:
    from certify.expect.accounts import Accounts

EMBEDDINGS = ("embedding", "linear")  # whose weights PEFT may save untrained: the input embedding, the output head


def settle_base(accounts: "Accounts", group: Group, terms: Terms) -> None:
    """`module.base_layer.bias`: trained; `module.base_layer.weight`: the embedding that the adapter was trained on, perhaps resized."""
    ((leaf, name),) = group.names.items()
    weight = f"{group.module}.{leaf}"
    place = accounts.place(weight)
    if leaf == "bias" and terms.bias not in ("all", "lora_only"):
        raise DamagedError(f"no field of the adapter's configuration says that {place.key} was trained")
    _put(accounts, weight, name, snapshot=leaf == "weight")


def settle_saved(accounts: "Accounts", group: Group, terms: Terms) -> None:
    """`module.parameter`: modules_to_save, bias="all", or a copy of an embedding."""
    ((leaf, name),) = group.names.items()
    path = f"{group.module}.{leaf}" if group.module else leaf
    saved = terms.saves(group.module)
    place = accounts.places.find(path)
    trained = saved or (terms.bias == "all" and "bias" in path)  # until 0.20, anywhere in the name: T5's relative ones
    if place is None and saved:
        _new(accounts, path, name)
        return
    place = accounts.place(path)
    copied = leaf == "weight" and (place.parameter == accounts.places.embedding or accounts.places.is_head(place.parameter))
    if not trained and not copied and accounts.complete:
        raise DamagedError(f"no field of the adapter's configuration says that {place.key} was trained")
    if not trained and not copied:
        raise NotInterpretedError(f"whether {place.key} was trained is not known")
    _put(accounts, path, name, snapshot=not trained)


def settle_again(accounts: "Accounts", group: Group, terms: Terms) -> None:
    """What bias="all" saves of a module that is saved whole: its trained bias once more, and the one that is not in use any more."""
    ((leaf, name),) = group.names.items()
    copy, _, own = leaf.partition(".")
    twin = next((n for n in accounts.adapter.tensors if n.removeprefix(PREFIX) == f"{group.module}.{own}"), None)
    if twin is None or not terms.saves(group.module):
        raise NotInterpretedError(f"{group.module}: this version does not interpret this kind of adapter tensor")
    if copy == "modules_to_save" and not torch.equal(accounts.tensor(name).load(), accounts.tensor(twin).load()):
        raise DamagedError(f"{name} and {twin} are the same weight with different values")


def _put(accounts: "Accounts", weight: str, name: str, *, snapshot: bool) -> None:
    """The adapter's tensor instead of the base's; only a copy of an embedding may have another number of rows."""
    place, value = accounts.place(weight), accounts.tensor(name)
    accounts.known_dtypes(place.key, name)
    before = accounts.base.tensors[place.key].shape
    resized = len(value.shape) == 2 and value.shape[1:] == before[1:] and place.kind in EMBEDDINGS
    if value.shape != before and not (resized and _of_vocabulary(accounts, place.parameter)):
        raise DamagedError(f"{value.described()} does not fit {place.key} {accounts.base.tensors[place.key].described()}")
    key = accounts.key(place)
    draft = accounts.draft(key)
    if draft.start is not None:
        raise DamagedError(f"another tensor of the file replaces {key} as well")
    if snapshot and value.shape == before and _equal(accounts, place.key, value):
        if not draft.parts and not draft.replacing:
            del accounts.drafts[key]
        return
    draft.start, draft.snapshot = value, snapshot


def _of_vocabulary(accounts: "Accounts", parameter: str) -> bool:
    return parameter == accounts.places.embedding or accounts.places.is_head(parameter)


def _equal(accounts: "Accounts", key: str, value: AdapterTensor) -> bool:
    """Whether a copy is the base's own, value by value, a block at a time."""
    step, total = 1 << 19, accounts.base.tensors[key].entry.elements
    counts = [min(step, total - first) for first in range(0, total, step)]
    pairs = zip(accounts.base.tensors[key].spans(counts), value.spans(counts), strict=True)
    return all(bool((ours.float() == theirs.float()).all()) for ours, theirs in pairs)


def _new(accounts: "Accounts", path: str, name: str) -> None:
    """A tensor of a head that the base has not: the class that the adapter was trained on says whether there is one."""
    accounts.known_dtypes(path, name)
    accounts.new[path] = accounts.tensor(name)
