"""What usually goes wrong with a merge, each cause as a prediction: where a stored tensor would be right if that had happened.

A prediction is exact: the interval of one rounding around another delta, or a replay of the steps. So at every size of delta a cause
either explains (nearly) every element or does not. Being explained makes nothing right; it only names what is wrong.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from certify.bounds import Bound, Delta, bound
from certify.coefficient import Coefficient
from certify.errors import DamagedError
from certify.grid import Grid
from certify.inputs.stored import Stored
from certify.relatives import Relative

PROBE = 8  # rows that are compared with each relative


@dataclass(frozen=True)
class Scene:
    """Some rows of a wrong tensor.

    rows      (n,) their numbers      base, merged  (n, columns) as stored      deltas  whole factors, all rows
    declared  the bound that was broken
    wrong     (n, columns) where it was broken       beyond  masks (rows,), (columns,): where in the whole tensor it was broken
    grid      of the merged rows                     decoded  the base was code × scale
    """

    rows: Tensor
    base: Tensor
    merged: Tensor
    deltas: Sequence[Delta]
    declared: Bound
    wrong: Tensor
    beyond: tuple[Tensor, Tensor]
    grid: Grid
    decoded: bool = False

    def every(self, step: int) -> "Scene":
        """Each step-th row."""
        thin = Bound(self.declared.exact[::step], self.declared.slack[::step], ())
        chosen = torch.arange(0, len(self.rows), step)
        return replace(self, rows=self.rows[::step], base=self.base[::step], merged=self.merged[::step],
                       declared=thin, wrong=self.wrong[::step], grid=self.grid.of(chosen))  # fmt: skip

    def bound(self, deltas: Sequence[Delta], criterion: str, base: Tensor | None = None) -> Bound:
        """What these rows may hold if other deltas were due, or were added to another base."""
        here = [picked(delta, self.rows) for delta in deltas]
        return bound(self.base if base is None else base, here, self.grid, criterion, decoded=self.decoded)

    def added(self, deltas: Sequence[Delta]) -> Tensor:
        """Σ Δ on these rows, float32."""
        return sum((picked(delta, self.rows).value() for delta in deltas), torch.zeros(self.base.shape))


Prediction = Callable[[Scene], Tensor]  # where the stored values are as predicted, bool (n, columns)
Suspect = tuple[str, Prediction]  # the cause in plain words


def picked(delta: Delta, rows: Tensor) -> Delta:
    return replace(delta, left=delta.left[rows])


def once(deltas: Sequence[Delta], base: Stored | None = None, criterion: str = "nearest") -> Prediction:
    """One rounding of base + Σ deltas."""

    def holds(scene: Scene) -> Tensor:
        ours = None if base is None else base.rows(scene.rows.tolist())
        return scene.bound(deltas, criterion, ours).holds(scene.merged.double())

    return holds


def replay(steps: Callable[[Scene], Tensor]) -> Prediction:
    """Exactly these steps in float32 and the dtypes they name; an element on a tie may differ, which the acceptance allows for."""
    return lambda scene: scene.grid.once(steps(scene).float()) == scene.merged


def arithmetic(scene: Scene) -> Iterator[Suspect]:
    """The right delta, another arithmetic."""
    deltas, stored = scene.deltas, scene.merged.dtype
    for grid, name in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        if any(not torch.equal(f.to(grid).float(), f.float()) for d in deltas for f in (d.left, d.right)):
            yield f"A and B cast to {name} before they were multiplied", once([_cast(delta, grid) for delta in deltas])
        if grid not in (stored, scene.base.dtype):
            yield f"stored by way of {name}", replay(partial(_by_way_of, grid))
    if scene.base.dtype != torch.float32:
        yield (
            "equals PEFT's safe_merge: Δ rounded to the stored dtype before it was added",
            replay(lambda s: s.base.float() + s.added(deltas).to(s.base.dtype).float()),
        )
    if scene.grid.scale is not None:
        yield "Δ was added to the codes, not to code × scale", replay(lambda s: s.base + s.grid.scaled(s.added(deltas)))
    yield "Δ rounded before it was added, or added adapter by adapter, as PEFT does", once(deltas, criterion="peft")


def factors(scene: Scene, c: Coefficient | None) -> Iterator[Suspect]:
    """The right delta, another factor."""
    if c is None:
        return
    named = [name for name, value in known_factors(scene.deltas) if c.admits(value)]
    value = next((value for _, value in known_factors(scene.deltas) if c.admits(value)), (c.low + c.high) / 2)
    if named or abs(value - 1) > 1e-3:
        cause = " or ".join(named) or f"the delta has the factor {value:.5g}: another scaling or weight"
        yield cause, once([replace(delta, scaling=delta.scaling * value) for delta in scene.deltas])
    yield (
        "merged twice, one rounding after the other",
        replay(lambda s: s.grid.once(s.base.float() + s.added(s.deltas)).float() + s.added(s.deltas)),
    )


def known_factors(deltas: Sequence[Delta]) -> list[tuple[str, float]]:
    """Coefficients with a usual cause; those that mean the right scaling are left out."""
    r, s = deltas[0].rank, deltas[0].scaling
    found = [("merged twice", 2.0), ("wrong sign: the delta was subtracted", -1.0)]
    if len(deltas) == 1 and s:
        root = math.sqrt(r)
        found += [("α/√r where α/r is due", root), ("α/r where α/√r is due", 1 / root), ("not divided by r: s = α", float(r))]
        found += [("scaling left out: s = 1", 1 / s), ("α ignored: s = 1/r", 1 / (r * s)), ("α ignored: s = 1/√r", 1 / (root * s))]
        found += [("scaling applied twice", s)]
    return [(name, value) for name, value in found if abs(value - 1) > 1e-6]


def parts(scene: Scene) -> Iterator[Suspect]:
    """The delta of some adapters, of some ranks, or transposed."""
    deltas, (rows, columns) = scene.deltas, (scene.beyond[0].numel(), scene.beyond[1].numel())
    if len(deltas) > 1:
        for number, delta in enumerate(deltas, start=1):
            yield f"only adapter {number} of {len(deltas)} was merged", once([delta])
    elif (kept := _ranks(scene)) is not None:
        delta = deltas[0]
        part = replace(delta, left=delta.left[:, kept].contiguous(), right=delta.right[kept])
        yield f"only {part.rank} of {delta.rank} ranks were merged", once([part])
    if rows == columns:
        turned = [replace(d, left=d.right.T.contiguous(), right=d.left.T.contiguous()) for d in deltas]
        yield "the delta is transposed", once(turned)


def places(scene: Scene, relatives: Iterable[Relative]) -> Iterator[Suspect]:
    """Another tensor's delta, or another tensor altogether."""
    probe = scene.every(max(1, len(scene.rows) // PROBE))
    added = (probe.merged.double() - probe.base.double()).view(-1)
    best, likest, nearest, twin = -1.0, None, 0.5, None
    for relative in relatives:
        try:
            other = probe.added(relative.deltas()).double()
            theirs = relative.base.rows(probe.rows.tolist()).double()
        except DamagedError:
            continue
        like = float(torch.nn.functional.cosine_similarity(added, other.view(-1), dim=0))
        apart = probe.merged.double() - theirs
        far = float(torch.minimum(apart.norm(), (apart - other).norm()) / theirs.norm())
        best, likest = (like, relative) if like > best else (best, likest)
        nearest, twin = (far, relative) if far < nearest else (nearest, twin)
    if likest is not None:
        yield f"the delta of {likest.name} was added", once(likest.deltas())
    if twin is not None:
        yield f"this is {twin.name}, merged: tensors or experts exchanged", once(twin.deltas(), twin.base)
        yield f"this is {twin.name} of the base, unmerged", once([], twin.base)


def regions(scene: Scene) -> Iterator[Suspect]:
    """A tile, rows or columns that were left out."""
    rows, columns = scene.beyond
    named = [_span(mask, word) for mask, word in ((rows, "rows"), (columns, "columns")) if float(mask.double().mean()) < 0.9]
    if named:

        def holds(s: Scene) -> Tensor:
            box = rows[s.rows][:, None] & columns[None, :]
            return torch.where(box, s.grid.once(s.base.float()) == s.merged, once(s.deltas)(s))

        yield f"never merged in {' and '.join(named)}", holds


def _span(mask: Tensor, word: str) -> str:
    at = mask.nonzero().view(-1)
    return f"{word} {int(at[0]):,} to {int(at[-1]):,}"


def _by_way_of(grid: torch.dtype, scene: Scene) -> Tensor:
    return (scene.base.float() + scene.added(scene.deltas)).to(grid).float()


def _cast(delta: Delta, grid: torch.dtype) -> Delta:
    return replace(delta, left=delta.left.to(grid).float(), right=delta.right.to(grid).float())


def _ranks(scene: Scene) -> Tensor | None:
    """Which ranks are in M − W: a least-squares coefficient per rank, kept if above half of the largest; None for all or none.

    Rounding shrinks the coefficients of all ranks alike, so that only their proportions count.
    """
    delta = picked(scene.deltas[0], scene.rows).double()
    added = torch.where(torch.isfinite(scene.merged), scene.merged, scene.base).double() - scene.base.double()
    gram = (delta.left.T @ delta.left) * (delta.right @ delta.right.T)
    along = ((delta.left.T @ added) * delta.right).sum(dim=1)
    if not bool(torch.isfinite(along).all()):  # a base that holds NaN
        return None
    each = torch.linalg.lstsq(gram, along[:, None], driver="gelsd").solution.view(-1) * math.copysign(1.0, delta.scaling)
    kept = each > each.max() / 2
    return None if bool(kept.all()) or float(each.max()) <= 0 else kept.nonzero().view(-1)
