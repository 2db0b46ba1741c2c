"""Bugs in where things belong: architecture, names, placement and planner."""

from collections.abc import Callable
from dataclasses import replace as changed
from typing import Any

import pytest

from exam.bugs.meaning import twin
from exam.bugs.registry import bug
from merge import placement, planner, shards
from merge.architecture import modules
from merge.names import Names
from merge.operation import Operation, Part, ShardPlan, Slabs
from merge.placement import fit, ties
from merge.placement.site import Site
from merge.runners.inputs import Buffers


@bug("architecture/modules", "gpt2 square", "Conv1D, which stores (in, out), is taken for a linear layer")
def conv1d_as_linear(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(modules, "layout", lambda module: "linear" if type(module).__name__ in ("Linear", "Conv1D") else "other")


@bug("architecture/modules", "llama square", "linear layers are taken for Conv1D")
def linear_as_conv1d(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(modules, "layout", lambda module: "conv1d" if type(module).__name__ == "Linear" else "other")


@bug("architecture/modules", "opt positions", "positions that are counted from two are taken for a plain lookup")
def own_forwards_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(modules, "foreign", lambda _: {})


@bug("placement/fit", "gemma3 of old", "PEFT before 0.18 is taken to have multiplied what it added to a scaled embedding")
def scaled_embeddings_of_old(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fit, "UNSCALED", (0,))


@bug("placement/ties", "llama head rows", "rows of a tied head are taken for the embedding's")
def rows_of_a_head_shared(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ties, "_parted", lambda *_: False)


@bug("placement/demand", "llama unnamed", "pairs that the configuration does not name are merged")
def unnamed_pairs_merged(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(placement, "refuse_unnamed", lambda *_: None)


def found_elsewhere(patch: pytest.MonkeyPatch, one: str, other: str) -> None:
    """Names.find gives the twin of what it should."""
    original = Names.find

    def find(names: Names, name: str) -> Any:
        weight = original(names, name)
        return weight and next((w for w in names.table.weights if w.key == twin(weight.key, one, other)), weight)

    patch.setattr(Names, "find", find)


@bug("names", "deepseek", "experts 0 and 3 are exchanged")
def experts_exchanged(patch: pytest.MonkeyPatch) -> None:
    found_elsewhere(patch, ".experts.0.", ".experts.3.")


@bug("names", "mixtral", "w1 and w3, the two halves of one fused parameter, are exchanged")
def halves_exchanged(patch: pytest.MonkeyPatch) -> None:
    found_elsewhere(patch, ".w1.", ".w3.")


@bug("names", "deepseek", "layer 2 is taken for the MTP layer", stopped=True)
def layer_taken_for_the_mtp(patch: pytest.MonkeyPatch) -> None:
    original = Names.find

    def find(names: Names, name: str) -> Any:
        weight = original(names, name)
        mtp = weight and weight.key.replace("layers.2.", "layers.3.")
        return changed(weight, key=mtp) if mtp in names.table.unmatched else weight

    patch.setattr(Names, "find", find)


@bug("names", "gpt2 ambiguous", "nobody asks whether two tensors fill one parameter", stopped=True)
def ambiguity_unseen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Names, "is_ambiguous", lambda *_: False)


@bug("placement/site", "gpt2 named twice", "nobody asks whether a tensor is claimed twice")
def double_claims_unseen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Site, "problem", lambda *_: "")


def placed_wrongly(patch: pytest.MonkeyPatch, wrong: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """What the planner learns from `place`, spoiled."""

    def place(*given: Any) -> Any:
        found = placement.place(*given)
        return changed(found, placed=wrong(dict(found.placed)))

    patch.setattr(planner, "place", place)


def every_part(patch: pytest.MonkeyPatch, transposed: bool) -> None:
    """Deltas as if every weight were stored one way; the window stays inside the delta."""

    def wrong(found: dict[str, Any]) -> dict[str, Any]:
        return {
            key: changed(placed, steps=tuple(changed(p, transposed=transposed) if isinstance(p, Part) else p for p in placed.steps))
            for key, placed in found.items()
        }

    placed_wrongly(patch, wrong)


@bug("placement/fit", "gpt2 square", "the delta of a Conv1D is not transposed")
def delta_not_transposed(patch: pytest.MonkeyPatch) -> None:
    every_part(patch, transposed=False)


@bug("placement/fit", "llama square", "every delta is transposed")
def every_delta_transposed(patch: pytest.MonkeyPatch) -> None:
    every_part(patch, transposed=True)


@bug("placement/demand", "llama truncated", "nobody asks whether the adapter is whole")
def truncated_adapters_accepted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(placement, "refuse_truncated", lambda *_: None)


@bug("placement/__init__", "llama", "what replaces a tensor is forgotten")
def replacements_forgotten(patch: pytest.MonkeyPatch) -> None:
    placed_wrongly(patch, lambda found: {key: placed for key, placed in found.items() if placed.steps})


@bug("placement/__init__", "llama", "the last tensor of the list is forgotten")
def last_tensor_forgotten(patch: pytest.MonkeyPatch) -> None:
    placed_wrongly(patch, lambda found: dict([*found.items()][:-1]))


@bug("placement/__init__", "llama rsLoRA", "each delta is entered twice")
def deltas_entered_twice(patch: pytest.MonkeyPatch) -> None:
    placed_wrongly(patch, lambda found: {key: changed(placed, steps=placed.steps * 2) for key, placed in found.items()})


@bug("placement/__init__", "deepseek", "one expert's delta goes to all of its layer")
def one_expert_for_all(patch: pytest.MonkeyPatch) -> None:
    def wrong(found: dict[str, Any]) -> dict[str, Any]:
        def steps(key: str) -> Any:
            return found[key.replace(".experts.1.", ".experts.0.").replace(".experts.2.", ".experts.0.")].steps

        return {key: changed(placed, steps=steps(key)) for key, placed in found.items()}

    placed_wrongly(patch, wrong)


def sharded(patch: pytest.MonkeyPatch, wrong: Callable[[ShardPlan], ShardPlan]) -> None:
    """What the planner learns of one output shard, spoiled."""
    patch.setattr(planner, "shard", lambda *given: wrong(shards.shard(*given)))


@bug("shards", "llama", "the last tensor of each shard is always copied")
def last_of_a_shard_copied(patch: pytest.MonkeyPatch) -> None:
    def wrong(made: ShardPlan) -> ShardPlan:
        last = made.operations[-1]
        return changed(made, operations=(*made.operations[:-1], changed(last, kind="copy", parts=())))

    sharded(patch, wrong)


@bug("shards", "llama fp16", "a merge is planned as a copy where the dtype stays")
def merges_planned_as_copies(patch: pytest.MonkeyPatch) -> None:
    original = shards._operation
    patch.setattr(shards, "_operation", lambda wanted, *given: original(changed(wanted, placed=None), *given))


@bug("shards", "deepseek → fp16", "another output dtype is given to the router's F32 bias as well")
def every_dtype_converted(patch: pytest.MonkeyPatch) -> None:
    def shard(catalog: Any, names: Any, storage: shards.Storage) -> ShardPlan:
        return shards.shard(catalog, names, changed(storage, dtypes=dict.fromkeys(("BF16", "F16", "F32"), "F16")))

    patch.setattr(planner, "shard", shard)


@bug("planner", "deepseek → fp16", "the rarest dtype is taken for the main one")
def wrong_main_dtype(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(planner, "main_dtype", lambda _: "F32")


@bug("shards", "deepseek → fp16", "the header keeps the base's dtypes though the bytes are converted")
def header_of_the_base(patch: pytest.MonkeyPatch) -> None:
    sharded(patch, lambda made: changed(made, header=made.header.replace(b'"F16"', b'"BF16"')[: len(made.header)]))


@bug("planner", "llama", "the index names one shard for everything")
def index_names_one_shard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(planner.Plan, "weight_map", property(lambda plan: {o.target.name: plan.shards[0].file for o in plan.operations}))


@bug("planner", "llama", "total_size counts the headers")
def total_size_counts_headers(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(planner.Plan, "total_size", property(lambda plan: plan.size))


@bug("planner", "llama", "the number of slabs is rounded down")
def tail_of_a_tensor_forgotten(patch: pytest.MonkeyPatch) -> None:
    whole = Slabs.__iter__
    patch.setattr(Slabs, "__len__", lambda slabs: max(1, slabs.length // slabs.height))
    patch.setattr(Slabs, "__iter__", lambda slabs: iter([*whole(slabs)][: len(slabs)]))


@bug("runners/inputs", "llama → fp32", "what is read begins one row too early")
def reads_begin_a_row_early(patch: pytest.MonkeyPatch) -> None:
    original = Buffers.read

    def read(buffers: Buffers, inputs: Any, operation: Operation, start: int, stop: int) -> Any:
        early = 1 if start and operation.parts else 0
        return original(buffers, inputs, operation, start - early, stop - early)

    patch.setattr(Buffers, "read", read)


@bug("shards", "llama → fp32", "results are written where the base has them")
def written_at_the_base_s_place(patch: pytest.MonkeyPatch) -> None:
    def moved(operation: Operation) -> Operation:
        start, target = operation.reads[0].tensor.start, operation.target
        return changed(operation, target=changed(target, start=start, stop=start + target.size))

    sharded(patch, lambda made: changed(made, operations=tuple(moved(operation) for operation in made.operations)))
