"""Bugs in the kinds of adapter beside plain pairs: biases, DoRA, embeddings, stacked experts, token rows."""

from collections.abc import Callable
from dataclasses import replace as changed
from typing import Any

import pytest
from torch import Tensor

from exam.bugs.meaning import claims, exchanged, twin
from exam.bugs.placing import placed_wrongly
from exam.bugs.registry import bug
from merge import arithmetic
from merge.adapters import bias, config, dora, embedding, experts, tokens
from merge.adapters.contract import Addend, Replacement, Stacked
from merge.operation import Part

LAYERS = ("layers.0.", "layers.1.")


def each(wrong: Callable[[Any], Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda found: [wrong(claim) for claim in found]


@bug("adapters/bias", "qwen2 lora_bias", "what lora_bias adds is not scaled")
def added_bias_not_scaled(patch: pytest.MonkeyPatch) -> None:
    claims(patch, bias, each(lambda claim: changed(claim, scaling=1.0)))


@bug("adapters/bias", "qwen2 lora_bias", "what lora_bias adds takes the base's place")
def added_bias_taken_for_whole(patch: pytest.MonkeyPatch) -> None:
    claims(patch, bias, each(lambda claim: Replacement(claim.names[:1], claim.value)))


@bug("adapters/bias", "qwen2 biases", "trained biases, which are whole, are added to the base's")
def whole_bias_added(patch: pytest.MonkeyPatch) -> None:
    claims(patch, bias, each(lambda claim: Addend(claim.names, claim.value, 1.0)))


@bug("adapters/bias", "qwen2 biases", "trained biases go to another layer")
def biases_of_two_layers(patch: pytest.MonkeyPatch) -> None:
    claims(patch, bias, exchanged("value", *LAYERS))


@bug("adapters/bias", "qwen2 biases", 'bias="all" is read over', stopped=True)
def trained_biases_read_over(patch: pytest.MonkeyPatch) -> None:
    claims(patch, bias, lambda _: [])


def magnitudes_of(patch: pytest.MonkeyPatch, *parts: str) -> None:
    """Modules whose paths differ in one part take each other's magnitudes."""
    original = dora.magnitude
    patch.setattr(dora, "magnitude", lambda settings, tensors, path: original(settings, tensors, twin(path, *parts)))


@bug("adapters/dora", "llama DoRA", "magnitudes go to another layer")
def magnitudes_of_two_layers(patch: pytest.MonkeyPatch) -> None:
    magnitudes_of(patch, *LAYERS)


@bug("adapters/dora", "llama DoRA", "q_proj takes down_proj's magnitude, which is as long, and the other way round")
def magnitudes_of_two_modules(patch: pytest.MonkeyPatch) -> None:
    magnitudes_of(patch, "self_attn.q_proj", "mlp.down_proj")


@bug("adapters/dora", "llama DoRA", "use_dora is ignored", stopped=True)
def dora_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dora, "magnitude", lambda *_: None)


@bug("placement/fit", "llama DoRA", "lengths are given before the delta is added")
def magnitude_before_the_delta(patch: pytest.MonkeyPatch) -> None:
    placed_wrongly(patch, lambda found: {key: changed(placed, steps=placed.steps[::-1]) for key, placed in found.items()})


@bug("arithmetic", "llama DoRA", "DoRA divides by the mean of the lengths")
def one_length_for_all(patch: pytest.MonkeyPatch) -> None:
    def apply(step: arithmetic.Rescaled, exact: Tensor, start: int) -> None:
        exact.mul_((step.magnitude[start : start + len(exact)] / exact.norm(dim=1).mean()).unsqueeze(1))

    patch.setattr(arithmetic.Rescaled, "apply", apply)


@bug("arithmetic", "llama embedding DoRA", "the lengths of an embedding's columns leave out every odd row")
def lengths_of_half_the_rows(patch: pytest.MonkeyPatch) -> None:
    original = arithmetic.squares
    patch.setattr(arithmetic, "squares", lambda exact: original(exact[::2]))


@bug("adapters/embedding", "llama embedding", "an embedding's delta is not scaled")
def embedding_not_scaled(patch: pytest.MonkeyPatch) -> None:
    claims(patch, embedding, each(lambda claim: changed(claim, scaling=1.0)))


@bug("adapters/embedding", "llama embedding", "tokens are counted from one: each takes the delta of the next")
def tokens_counted_from_one(patch: pytest.MonkeyPatch) -> None:
    def late(claim: Any) -> Any:
        unit = claim.a.size // claim.a.elements
        return changed(claim, a=changed(claim.a, start=claim.a.start + unit, stop=claim.a.stop + unit))

    claims(patch, embedding, each(late))


@bug("adapters/embedding", "llama embedding", "an embedding's A is taken for its B", stopped=True)
def embedding_factors_exchanged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(embedding, "A", embedding.B)
    patch.setattr(embedding, "B", ".lora_embedding_A")


def stacks(patch: pytest.MonkeyPatch, field: str) -> None:
    """One field of stacks exchanged between two layers."""

    def wrong(found: list[Stacked]) -> list[Stacked]:
        held = {(claim.names[0], claim.depth): getattr(claim, field) for claim in found}
        return [changed(claim, **{field: held[twin(claim.names[0], *LAYERS), claim.depth]}) for claim in found]

    claims(patch, experts, wrong)


@bug("adapters/experts", "mixtral stacked", "all experts' B are those of another layer")
def stacked_pairs_of_two_layers(patch: pytest.MonkeyPatch) -> None:
    stacks(patch, "b")


@bug("adapters/experts", "mixtral stacked", "stacked experts go to another layer")
def stacks_of_two_layers(patch: pytest.MonkeyPatch) -> None:
    stacks(patch, "names")


@bug("adapters/experts", "mixtral stacked", "wrappers are counted from the outside", stopped=True)
def wrappers_from_the_outside(patch: pytest.MonkeyPatch) -> None:
    claims(patch, experts, each(lambda claim: changed(claim, depth=len(claim.names) - 1 - claim.depth)))


@bug("placement/fit", "mixtral stacked", "lora_B is read expert after expert, as another library writes it")
def experts_grouped_as_elsewhere(patch: pytest.MonkeyPatch) -> None:
    def regrouped(step: Any) -> Any:
        first, apart = step.columns if isinstance(step, Part) else (0, 1)
        return changed(step, columns=(first * step.a.tensor.shape[0], 1)) if apart > 1 else step

    placed_wrongly(
        patch,
        lambda found: {key: changed(placed, steps=tuple(regrouped(step) for step in placed.steps)) for key, placed in found.items()},
    )


@bug("adapters/tokens", "llama tokens", "trained rows go to the next token")
def token_rows_off_by_one(patch: pytest.MonkeyPatch) -> None:
    claims(patch, tokens, each(lambda claim: changed(claim, indices=tuple(index + 1 for index in claim.indices))))


@bug("adapters/tokens", "llama tokens", "trained rows are taken in the other order")
def token_rows_reversed(patch: pytest.MonkeyPatch) -> None:
    claims(patch, tokens, each(lambda claim: changed(claim, indices=claim.indices[::-1])))


@bug("adapters/tokens", "llama tokens", "token rows are read over", stopped=True)
def token_rows_read_over(patch: pytest.MonkeyPatch) -> None:
    claims(patch, tokens, lambda _: [])


@bug("arithmetic", "llama tokens", "trained rows are added, since they are called trainable_tokens_delta")
def token_rows_added(patch: pytest.MonkeyPatch) -> None:
    def apply(step: arithmetic.Placed, exact: Tensor, start: int) -> None:
        for row, index in zip(step.value, step.indices, strict=True):
            if start <= index < start + len(exact):
                exact[index - start].add_(row)

    patch.setattr(arithmetic.Placed, "apply", apply)


@bug("adapters/refused", "llama LoHa", "no kind of adapter is refused")
def no_kind_refused(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(config, "refuse_other_methods", lambda _: None)
