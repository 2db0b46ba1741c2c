"""Bugs in the numbers: arithmetic, rounding, encodings and the runner's memory."""

from collections.abc import Callable
from dataclasses import replace as changed
from typing import Any

import pytest
import torch
from torch import Tensor

from exam.bugs.registry import bug
from merge import arithmetic, encodings, rounding
from merge.encodings.plain import Plain
from merge.operation import Operation
from merge.runners import inputs, local
from merge.source import Reader

Slab = Callable[[Tensor, tuple[arithmetic.Delta, ...], slice], Tensor]  # (W, deltas, rows) → W + Δ, float32


def merging(patch: pytest.MonkeyPatch, wrong: Slab) -> None:
    """arithmetic.merge with another sum."""

    def merge(exact: Tensor, steps: tuple[arithmetic.Delta, ...], start: int) -> Tensor:
        return exact.copy_(wrong(exact.clone(), steps, slice(start, start + len(exact)))) if steps else exact

    patch.setattr(arithmetic, "merge", merge)


def value(delta: arithmetic.Delta, rows: slice) -> Tensor:
    return delta.scaling * (delta.left[rows] @ delta.right)


@bug("arithmetic", "llama", "the scaling is left out")
def scaling_left_out(patch: pytest.MonkeyPatch) -> None:
    merging(patch, lambda W, deltas, rows: W + deltas[0].left[rows] @ deltas[0].right)


@bug("arithmetic", "llama", "the scaling is applied to A and to B")
def scaling_squared(patch: pytest.MonkeyPatch) -> None:
    merging(patch, lambda W, deltas, rows: W + deltas[0].scaling * value(deltas[0], rows))


@bug("arithmetic", "llama", "the delta is subtracted")
def delta_subtracted(patch: pytest.MonkeyPatch) -> None:
    merging(patch, lambda W, deltas, rows: W - value(deltas[0], rows))


@bug("arithmetic", "llama", "every slab gets the first rows of the delta")
def first_rows_for_every_slab(patch: pytest.MonkeyPatch) -> None:
    merging(patch, lambda W, deltas, rows: W + value(deltas[0], slice(0, rows.stop - rows.start)))


@bug("arithmetic", "llama", "the base is not added")
def base_not_added(patch: pytest.MonkeyPatch) -> None:
    merging(patch, lambda _, deltas, rows: value(deltas[0], rows))


@bug("arithmetic", "llama", "the last rank is left out")
def last_rank_left_out(patch: pytest.MonkeyPatch) -> None:
    merging(patch, lambda W, deltas, rows: W + deltas[0].scaling * (deltas[0].left[rows, :-1] @ deltas[0].right[:-1]))


@bug("arithmetic", "llama", "the delta is rounded to bf16 before it is added")
def delta_rounded_first(patch: pytest.MonkeyPatch) -> None:
    merging(patch, lambda W, deltas, rows: W + value(deltas[0], rows).bfloat16().float())


@bug("arithmetic", "llama", "A and B are rounded to bf16 first")
def factors_rounded_first(patch: pytest.MonkeyPatch) -> None:
    original = arithmetic.Delta.of
    patch.setattr(arithmetic.Delta, "of", lambda a, b, *given, **options: original(a.bfloat16(), b.bfloat16(), *given, **options))


@bug("arithmetic", "llama", "ranks are added one by one in bf16")
def sum_in_bf16(patch: pytest.MonkeyPatch) -> None:
    def total(W: Tensor, deltas: tuple[arithmetic.Delta, ...], rows: slice) -> Tensor:
        for column, row in zip(deltas[0].left[rows].T, deltas[0].right, strict=True):
            W = (W + deltas[0].scaling * torch.outer(column, row)).bfloat16().float()
        return W

    merging(patch, total)


@bug("arithmetic", "llama fp32", "fp32 weights are merged in bf16")
def fp32_merged_in_bf16(patch: pytest.MonkeyPatch) -> None:
    merging(patch, lambda W, deltas, rows: (W.bfloat16() + value(deltas[0], rows).bfloat16()).float())


@bug("arithmetic", "llama", "rows keep the base's norm, as in DoRA")
def row_norms_kept(patch: pytest.MonkeyPatch) -> None:
    def total(W: Tensor, deltas: tuple[arithmetic.Delta, ...], rows: slice) -> Tensor:
        V = W + value(deltas[0], rows)
        return V * (W.norm(dim=1, keepdim=True) / V.norm(dim=1, keepdim=True))

    merging(patch, total)


@bug("encodings/plain", "llama → fp32", "what is read passes through fp16")
def conversion_through_fp16(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Plain, "decode", lambda _, stored, exact: exact.copy_(stored.half()))


def rounded(patch: pytest.MonkeyPatch, wrong: Callable[[Tensor, torch.dtype], Tensor], *, finite: bool = False) -> None:
    """rounding.nearest with another rule; finite: whatever comes out is called finite."""

    def nearest(exact: Tensor, stored: Tensor) -> bool:
        stored.copy_(wrong(exact, stored.dtype))
        return finite or bool(stored.isfinite().all())

    patch.setattr(rounding, "nearest", nearest)


@bug("rounding/plain", "llama", "toward zero")
def toward_zero(patch: pytest.MonkeyPatch) -> None:
    def truncated(exact: Tensor, _: torch.dtype) -> Tensor:
        return (exact.view(torch.int32) & -(1 << 16)).view(torch.float32)

    rounded(patch, truncated)


@bug("rounding/plain", "llama", "by chance, where nearest was declared")
def stochastic(patch: pytest.MonkeyPatch) -> None:
    def chance(exact: Tensor, _: torch.dtype) -> Tensor:
        noise = torch.randint(0, 1 << 16, exact.shape, generator=torch.Generator().manual_seed(0), dtype=torch.int32)
        return ((exact.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32)

    rounded(patch, chance)


@bug("rounding/plain", "llama", "twice: by way of fp16")
def by_way_of_fp16(patch: pytest.MonkeyPatch) -> None:
    rounded(patch, lambda exact, _: exact.half().float())


@bug("rounding/plain", "llama fp32 → fp16", "twice: by way of bf16")
def by_way_of_bf16(patch: pytest.MonkeyPatch) -> None:
    rounded(patch, lambda exact, _: exact.bfloat16().float())


@bug("rounding/plain", "llama too large", "an overflow to infinity passes for finite")
def overflow_unseen(patch: pytest.MonkeyPatch) -> None:
    rounded(patch, lambda exact, _: exact, finite=True)


@bug("rounding/plain", "llama too large", "an overflow is clamped to the largest value")
def overflow_clamped(patch: pytest.MonkeyPatch) -> None:
    rounded(patch, lambda exact, dtype: exact.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max))


@bug("rounding/plain", "llama fp16", "subnormal numbers become zero")
def subnormals_flushed(patch: pytest.MonkeyPatch) -> None:
    rounded(patch, lambda exact, dtype: torch.where(exact.abs() < torch.finfo(dtype).smallest_normal, 0.0, exact))


@bug("encodings/plain", "llama", "the bits of BF16 are read and written as F16")
def bf16_read_as_fp16(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(encodings, "ENCODINGS", (Plain("BF16", torch.float16, 2), *encodings.ENCODINGS[1:]))


@bug("encodings/plain", "llama", "F32 matrices are read column by column")
def column_by_column(patch: pytest.MonkeyPatch) -> None:
    original = Plain.view

    def view(encoding: Plain, raw: Tensor, shape: tuple[int, ...]) -> Tensor:
        return original(encoding, raw, shape[::-1]).T if encoding.dtype == "F32" and len(shape) == 2 else original(encoding, raw, shape)

    patch.setattr(Plain, "view", view)


@bug("encodings/__init__", "llama → fp32", "the output's encoding is the base's", stopped=True)
def output_in_the_base_s_encoding(patch: pytest.MonkeyPatch) -> None:
    original = encodings.named
    patch.setattr(encodings, "named", lambda dtype: changed(original("BF16"), dtype=dtype) if dtype == "F32" else original(dtype))


@bug("runners/inputs", "llama rsLoRA", "factors are kept for the next operation of the same shape")
def factors_kept(patch: pytest.MonkeyPatch) -> None:
    held: dict[Any, Any] = {}
    original = inputs.Factors.steps
    patch.setattr(inputs.Factors, "steps", lambda factors: held.setdefault(factors._operation.target.shape, original(factors)))


@bug("runners/local", "llama", "a slab of the same size is not read again")
def slab_not_read_again(patch: pytest.MonkeyPatch) -> None:
    original, sizes = Reader.into, set[tuple[int, str, int]]()

    def into(reader: Reader, file: str, start: int, view: memoryview) -> None:
        if (id(reader), file, len(view)) not in sizes or not file.startswith("model"):
            original(reader, file, start, view)
        sizes.add((id(reader), file, len(view)))

    patch.setattr(Reader, "into", into)


def computed(patch: pytest.MonkeyPatch, wrong: Callable[[int, Tensor, Tensor], Tensor]) -> None:
    """The bytes of one slab, spoiled. wrong: (first row, the slab as it was read, right bytes) → bytes"""
    original = local._computed

    def spoiled(operation: Operation, factors: inputs.Factors, start: int, stop: int, buffers: inputs.Buffers, *rule: Any) -> Any:
        before = buffers.read(factors._inputs, operation, start, stop).clone()
        out, sums = original(operation, factors, start, stop, buffers, *rule)
        return wrong(start, before, out), sums

    patch.setattr(local, "_computed", spoiled)


@bug("runners/local", "llama → fp32", "of a slab that grows, as many bytes are written as were read")
def half_a_slab(patch: pytest.MonkeyPatch) -> None:
    computed(patch, lambda _, before, out: out[: len(before)])


@bug("runners/local", "llama", "a tensor's later slabs are worked on as copies")
def later_slabs_copied(patch: pytest.MonkeyPatch) -> None:
    computed(patch, lambda start, before, out: before if start else out)


@bug("runners/local", "llama", "the last job of a shard is never taken, and nobody counts", stopped=True)
def last_job_lost(patch: pytest.MonkeyPatch) -> None:
    original = local._jobs
    patch.setattr(local, "_jobs", lambda *given: iter([*original(*given)][:-1]))
