"""A and B of one module: a linear map, an embedding, a convolution, an attention module; with DoRA's magnitude or a bias beside them.

linear (out, in)   W += s·B·A          Conv1D (in, out)   W += s·(B·A)ᵀ         embedding (rows, width)   W += s·(B·A)ᵀ
convolution        W[o, i, …] += s·Σ_r B[o, r]·A[r, i, …]                       bias (lora_bias)          b += s·lora_B.bias
"""

import math
from math import prod
from typing import TYPE_CHECKING

from certify.errors import DamagedError, NotInterpretedError
from certify.expect.expectation import Part
from certify.expect.kinds.experts import settle_expert, settle_parameter
from certify.expect.names import PREFIX, Group
from certify.expect.place import Orientation, Place
from certify.expect.terms import Terms

if TYPE_CHECKING:
    from certify.expect.accounts import Accounts

SCALED_SINCE = (0, 18, 0)  # PEFT before it left out the factor by which some embeddings multiply their rows (PR 2825, 2839)
TWICE_UNTIL = (0, 21, 2)  # PEFT adds the delta of an attention's out_proj twice, in forward and merge alike


def settle_pair(accounts: "Accounts", group: Group, terms: Terms) -> None:
    """Finds the tensor that the pair belongs to, and adds to its draft."""
    a, b = _partners(group)
    weight = f"{group.module}.weight"
    if "embedding_A" not in group.names and (piece := accounts.places.inside(weight)) is not None:
        settle_expert(accounts, group, terms, piece)
        return
    place = accounts.places.find(weight) or accounts.places.find(f"{group.module}.in_proj_weight")
    direct = accounts.places.members(group.module)
    module = place is not None and place.kind != "other" and terms.targets({group.module, *place.paths()})
    if terms.parameters and not module and any(terms.targets_parameter(member.parameter) for member in direct):
        settle_parameter(accounts, group, terms, direct)
        return
    if place is None:
        place = accounts.place(weight)  # says what is lost
    _refuse_untargeted(accounts, group, place, terms)
    key = accounts.key(place)
    accounts.known_dtypes(place.key, a, b)
    refuse_odd(accounts, place.parameter, terms)
    if accounts.places.silent(place.parameter):
        _refuse_silent(accounts, a if "embedding_A" in group.names else b)
        if "bias" in group.names:
            _refuse_silent(accounts, group.names["bias"])
    orientation = _orientation(accounts, group, place)
    rank = terms.rank(group.module)
    _hold_shapes(accounts, a, b, rank, place, orientation)
    stated = _finite(terms.scaling(group.module))
    times = _times(accounts, group, place, terms)
    _magnitude(accounts, group, terms, key, orientation, place)
    _bias(accounts, group, terms, stated)
    draft = accounts.draft(key)
    if draft.parts:
        raise DamagedError(f"another pair belongs to the same tensor {key}")
    draft.convolution = place.kind == "convolution"
    part = Part(accounts.tensor(a), accounts.tensor(b), rank, stated * accounts.weight, orientation, path=group.module)
    rows = None if times == 1 else (0, accounts.base.tensors[place.key].shape[0])  # what is added twice is no plain sum: it rounds twice
    draft.parts += [(rows, part)] * times
    accounts.scalings[key] = stated


def _partners(group: Group) -> tuple[str, str]:
    kind = "embedding" if any(part.startswith("embedding") for part in group.names) else "lora"
    a, b = (group.names.get(f"{kind}_{side}") for side in "AB")
    if a is None or b is None:
        lone = next(iter(group.names.values()))
        partner = next(f"{kind}_{side}" for side, name in (("A", a), ("B", b)) if name is None)
        stated = lone.removeprefix(PREFIX).rpartition(".lora")[0] + "." + (f"{partner}.weight" if kind == "lora" else f"lora_{partner}")
        raise DamagedError(f"its partner {PREFIX if lone.startswith(PREFIX) else ''}{stated} is not in the file")
    return a, b


def _refuse_untargeted(accounts: "Accounts", group: Group, place: Place, terms: Terms) -> None:
    """PEFT would not even load a pair that the configuration does not name."""
    paths = {group.module, *place.paths()}
    if place.parameter.endswith(".out_proj.weight"):  # of an attention module that is targeted as a whole
        paths.add(group.module.removesuffix(".out_proj"))
    if accounts.complete and not terms.targets(paths):
        raise DamagedError(f"no field of the adapter's configuration names {group.module}: PEFT would not apply this pair")


def refuse_odd(accounts: "Accounts", parameter: str, terms: Terms) -> None:
    """Raises NotInterpretedError where what was trained beside a module is no change of its weight."""
    if odd := accounts.places.odd(parameter):
        raise NotInterpretedError(f"{parameter}: {odd}")
    if accounts.places.factor(parameter) != 1 and (terms.version or (0,)) < SCALED_SINCE:
        told = "its rows are multiplied, which PEFT before 0.18 left out where the lookup itself did it: what was trained cannot be known"
        raise NotInterpretedError(f"{parameter}: {told}")


def _refuse_silent(accounts: "Accounts", name: str) -> None:
    """name: of what begins as zero, beside a module that is never called. Raises NotInterpretedError where it was trained."""
    if bool(accounts.tensor(name).load().any()):
        doubt = "whether it had an effect where it was trained depends on transformers' version and on quantisation"
        raise NotInterpretedError(f"{name} is not zero, and the model never calls its module: {doubt}")


def _orientation(accounts: "Accounts", group: Group, place: Place) -> Orientation:
    """How the module stores its matrix; an embedding's rows are its inputs."""
    if "embedding_A" in group.names:
        if place.kind != "embedding" and not accounts.places.literal:
            raise DamagedError(f"{place.key} is no embedding")
        return "in,out"
    if place.orientation:
        return place.orientation
    if place.kind in ("convolution", "attention"):
        return "out,in"
    shape = accounts.base.tensors[place.key].shape
    if place.kind == "other" and len(shape) == 2 and shape[0] != shape[1]:  # a router: today's module multiplies by itself
        return "out,in"  # B (out, r) and A (r, in) fit in this order alone
    raise NotInterpretedError(f"{place.key} is not the weight of a linear module, or is fused in a way this version does not know")


def _hold_shapes(accounts: "Accounts", a: str, b: str, rank: int, place: Place, orientation: Orientation) -> None:
    """A (rank, in …) and B (out, rank …) as the base's weight and the configuration's rank demand. Raises DamagedError."""
    weight, shape_a, shape_b = accounts.base.tensors[place.key], accounts.tensor(a).shape, accounts.tensor(b).shape
    out, into = weight.shape[:1], weight.shape[1:]
    if place.kind != "convolution" and len(weight.shape) != 2:
        out, into = (0,), (0,)
    if orientation == "in,out":
        out, into = into, out
        if place.kind == "embedding":  # the vocabulary may have been resized; the adapter then brings the table as well
            into = shape_a[1:] if len(shape_a) == 2 and _resized(accounts, a) else into
    wanted_b = (*out, rank, *(1 for _ in into[1:]))
    if shape_a != (rank, *into) or shape_b != wanted_b:
        raise DamagedError(
            f"A {shape_a} and B {shape_b} do not fit {place.key} {weight.described()} "
            f"at rank {rank}: A {(rank, *into)} and B {wanted_b} were expected"
        )


def _resized(accounts: "Accounts", a: str) -> bool:
    return f"{a.removesuffix('.lora_embedding_A')}.base_layer.weight" in accounts.adapter.tensors


def _finite(scaling: float) -> float:
    if not math.isfinite(scaling):
        raise DamagedError(f"its scaling is {scaling}")
    return scaling


def _times(accounts: "Accounts", group: Group, place: Place, terms: Terms) -> int:
    """2 for the output projection of an attention module that PEFT wraps as a whole."""
    module, _, leaf = place.parameter.removesuffix(".weight").rpartition(".")
    owner = accounts.places.find(f"{module}.in_proj_weight") if leaf == "out_proj" else None
    if owner is None or owner.kind != "attention":
        return 1
    if not group.depth:  # adapted by itself: PyTorch's attention reads the weight, and never calls its module
        _refuse_silent(accounts, group.names["lora_B"])
        return 1
    if terms.version is not None and terms.version > TWICE_UNTIL:
        raise NotInterpretedError(f"{place.key}: whether this PEFT still adds the delta of out_proj twice is not known")
    return 2


def _magnitude(accounts: "Accounts", group: Group, terms: Terms, key: str, orientation: Orientation, place: Place) -> None:
    """DoRA's m: one number per output, which is a row of a stored (out, in) and a column of a stored (in, out)."""
    name = group.names.get("magnitude")
    if (name is not None) != terms.dora:
        raise DamagedError("its magnitude vector is not in the file" if terms.dora else "a DoRA magnitude, but use_dora is not set")
    if name is None:
        return
    accounts.known_dtypes(place.key, name)
    shape = accounts.base.tensors[place.key].shape
    outputs = shape[0] if orientation == "out,in" else shape[1]
    if prod(accounts.tensor(name).shape) != outputs:
        raise DamagedError(f"{name} holds {prod(accounts.tensor(name).shape)} numbers, {outputs} were expected")
    draft = accounts.draft(key)
    draft.magnitude, draft.along = accounts.tensor(name), "rows" if orientation == "out,in" else "columns"


def _bias(accounts: "Accounts", group: Group, terms: Terms, scaling: float) -> None:
    """lora_bias: B is a linear module with a bias of its own."""
    name = group.names.get("bias")
    if (name is not None) != terms.lora_bias:
        raise DamagedError("its lora_B.bias is not in the file" if terms.lora_bias else "a bias of lora_B, but lora_bias is not set")
    if name is None:
        return
    if (place := accounts.places.find(f"{group.module}.bias")) is None:
        raise NotInterpretedError(f"{group.module} has no bias that the adapter's could be added to")
    accounts.known_dtypes(place.key, name)
    if accounts.tensor(name).shape != accounts.base.tensors[place.key].shape:
        raise DamagedError(f"{name} {accounts.tensor(name).shape} does not fit {place.key}")
    part = Part(None, accounts.tensor(name), 1, scaling * accounts.weight, "out,in", path=group.module)
    accounts.draft(place.key).parts.append((None, part))
