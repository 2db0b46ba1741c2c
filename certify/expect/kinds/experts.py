"""Experts: factors of all of them in one tensor (target_parameters), and single ones where the checkpoint keeps them together.

A (r·E, a) holds expert after expert, B (b, r·E) rank after rank; `lora_B_layout: grouped_by_expert` says that B holds expert after expert
as well. Whether ΔW[e] is s·B[e]·A[e] or its transpose depends on what PEFT took for the inputs:

    PEFT ≤ 0.18          A over the first axis of a matrix, always:  ΔW[e] = s·(B[e]·A[e])ᵀ
    PEFT 0.19.0          (B·A)ᵀ unless the module says `is_transposed`
    PEFT ≥ 0.19.1        B·A unless the module says `is_transposed`

The shapes decide where only one fits; a square matrix is decided by `peft_version`, and by nothing else.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from certify.errors import DamagedError, NotInterpretedError
from certify.expect.expectation import Cut, Part
from certify.expect.names import Group
from certify.expect.place import Member, Orientation, Piece
from certify.expect.terms import Terms

if TYPE_CHECKING:
    from certify.expect.accounts import Accounts

ALWAYS_TURNED, INVERTED = (0, 19, 0), (0, 19, 0)  # below the first; at the second


def settle_parameter(accounts: "Accounts", group: Group, terms: Terms, members: Sequence[Member]) -> None:
    """A pair on a parameter itself. Of several parameters of one module PEFT wraps the first innermost, the last outermost."""
    chosen = [member for member in members if terms.targets_parameter(member.parameter)]
    if not 0 <= group.depth < len(chosen):
        raise DamagedError(f"{len(chosen)} parameters of {group.module} are targeted, this is number {group.depth + 1}")
    if {"bias", "magnitude"} & group.names.keys() or terms.dora or terms.lora_bias:
        raise DamagedError("PEFT knows neither DoRA nor lora_bias on a parameter")
    member = chosen[len(chosen) - 1 - group.depth]
    accounts.parameters.add(member.parameter)
    a, b = accounts.tensor(group.names["lora_A"]), accounts.tensor(group.names["lora_B"])
    rank, scaling = terms.rank(member.parameter), terms.scaling(member.parameter)
    if not math.isfinite(scaling):
        raise DamagedError(f"its scaling is {scaling}")
    experts = member.shape[0] if len(member.shape) == 3 else 1
    matrices = len(member.shape) in (2, 3) and len(a.shape) == len(b.shape) == 2
    if not matrices or a.shape[0] != rank * experts or b.shape[1] != rank * experts:
        raise DamagedError(f"A {a.shape} and B {b.shape} do not fit {member.parameter} {member.shape} at rank {rank}")
    orientation = _orientation(member, a.shape[1], b.shape[0], terms)
    pieces = accounts.places.pieces(member.parameter, {key: tensor.shape for key, tensor in accounts.base.tensors.items()})
    if not pieces:
        raise DamagedError(f"no tensor of the base fills {member.parameter}")
    for piece in pieces:
        accounts.known_dtypes(piece.key, *group.names.values())
        _add(accounts, piece, Part(a, b, rank, scaling * accounts.weight, orientation, path=member.parameter), experts, terms)


def settle_expert(accounts: "Accounts", group: Group, terms: Terms, piece: Piece) -> None:
    """A pair of one expert whose matrix lies in a tensor of all of them: (E, rows of every part, columns)."""
    if set(group.names) != {"lora_A", "lora_B"}:
        raise NotInterpretedError(f"{group.module}: only a plain pair is interpreted where {piece.key} holds all experts")
    if accounts.complete and not terms.targets({group.module}):
        raise DamagedError(f"no field of the adapter's configuration names {group.module}: PEFT would not apply this pair")
    a, b = accounts.tensor(group.names["lora_A"]), accounts.tensor(group.names["lora_B"])
    accounts.known_dtypes(piece.key, *group.names.values())
    shape, rank, scaling = accounts.base.tensors[piece.key].shape, terms.rank(group.module), terms.scaling(group.module)
    if len(shape) != 3 or piece.expert is None or piece.expert >= shape[0] or shape[1] % piece.parts:
        raise DamagedError(f"{piece.key} {shape} holds no such expert")
    height = shape[1] // piece.parts
    if a.shape != (rank, shape[2]) or b.shape != (height, rank):
        raise DamagedError(f"A {a.shape} and B {b.shape} do not fit expert {piece.expert} of {piece.key} {shape} at rank {rank}")
    first = piece.expert * shape[1] + piece.part * height
    part = Part(a, b, rank, scaling * accounts.weight, "out,in", path=group.module)
    accounts.draft(piece.key).parts.append(((first, first + height), part))


def _orientation(member: Member, inputs: int, outputs: int, terms: Terms) -> Orientation:
    """inputs: the width of A, outputs: the height of B."""
    rows, columns = member.shape[-2:]
    straight, turned = (outputs, inputs) == (rows, columns), (inputs, outputs) == (rows, columns)
    if not straight and not turned:
        raise DamagedError(f"A of width {inputs} and B of height {outputs} do not fit {member.parameter} {member.shape}")
    if straight != turned or len(member.shape) == 2:
        return "out,in" if straight else "in,out"
    if terms.version is None:
        raise NotInterpretedError(f"{member.parameter}: its matrices are square; without peft_version nobody knows which axis A is over")
    if terms.version < ALWAYS_TURNED:
        return "in,out"
    swapped = member.transposed if terms.version == INVERTED else not member.transposed
    return "out,in" if swapped else "in,out"


def _add(accounts: "Accounts", piece: Piece, part: Part, experts: int, terms: Terms) -> None:
    """The share of one disk tensor."""
    draft = accounts.draft(piece.key)
    if piece.expert is not None:
        cut = Cut(piece.expert, experts, terms.grouped, piece.part, piece.parts)
        draft.parts.append((None, _cut(part, cut, part.orientation)))
        return
    orientation: Orientation = part.orientation
    if piece.flipped:
        orientation = "in,out" if orientation == "out,in" else "out,in"
    if experts == 1 and len(accounts.base.tensors[piece.key].shape) == 2:
        draft.parts.append((None, Part(part.a, part.b, part.rank, part.scaling, orientation, path=part.path)))
        return
    height = accounts.base.tensors[piece.key].shape[1]
    for expert in range(experts):
        rows = expert * height, (expert + 1) * height
        draft.parts.append((rows, _cut(part, Cut(expert, experts, terms.grouped), orientation)))


def _cut(part: Part, cut: Cut, orientation: Orientation) -> Part:
    return Part(part.a, part.b, part.rank, part.scaling, orientation, cut, part.path)
