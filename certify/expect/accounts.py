"""The accounts of one adapter: every tensor of its file finds its place in the base, or is named."""

import difflib
import math
import re
from dataclasses import dataclass

from certify.errors import DamagedError, NotInterpretedError
from certify.expect.places import Orientation, Place, Places
from certify.expect.terms import Terms, read_terms, uninterpreted
from certify.finding import Finding, Outcome
from certify.inputs.adapter import CONFIG, Adapter, AdapterTensor
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.dtypes import FLOATS

CODE = "C4"
PREFIX = "base_model.model."  # PEFT's wrapper; absent in files made by inject_adapter_in_model
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
LATER = re.compile(r"\.(?:lora_|base_layer\.|token_adapter\.)")  # kinds of adapter tensors that later versions interpret
NEAREST_SHOWN = 3  # unplaced tensors for which the nearest base weight is looked up


@dataclass(frozen=True, slots=True)
class Pair:
    """One module's adapter: names of A (rank, in) and B (out, rank), its own scaling, how the base stores the weight."""

    a: str
    b: str
    rank: int
    scaling: float
    orientation: Orientation


class Accounts:
    """Filled by `settle`, `compare_with_peft` and `demand_targets`, in this order.

    pairs     disk key → Pair            replaced  disk key → adapter tensor
    unjudged  disk key → why             complete  False where something may change tensors that are not named here
    """

    def __init__(self, adapter: Adapter, base: Checkpoint, places: Places) -> None:
        self.adapter, self.base, self.places = adapter, base, places
        self.pairs: dict[str, Pair] = {}
        self.replaced: dict[str, str] = {}
        self.unjudged: dict[str, str] = {}
        self.findings: list[Finding] = []
        self.consumed = 0
        self.complete = self._understood = True
        self.terms: Terms | None = None
        self._missing: set[str] = set()

    def tensor(self, name: str) -> AdapterTensor:
        return self.adapter.tensors[name]

    def settle(self) -> None:
        """Gives every tensor of the file its place."""
        fields = uninterpreted(self.adapter.config)
        if fields:
            self.complete = self._understood = False
            self.note(CONFIG, f"this version does not interpret {'; '.join(fields)}")
        try:
            self.terms = read_terms(self.adapter.config)
        except DamagedError as error:
            self.fail(CONFIG, str(error))
            return
        if not self.adapter.tensors:
            self.fail(self.adapter.files[1], "the adapter holds no tensor")
        for name in sorted(self.adapter.tensors):
            if name.endswith(LORA_A) or (name.endswith(LORA_B) and name.removesuffix(LORA_B) + LORA_A not in self.adapter.tensors):
                self._settle_pair(name.removesuffix(LORA_A).removesuffix(LORA_B), self.terms)
            elif not name.endswith(LORA_B):
                self._settle_other(name, self.terms)
        if fields:  # the pairs are known, what else happens to their tensors is not
            self.unjudged.update(dict.fromkeys(self.pairs, f"the adapter's configuration is not interpreted: {'; '.join(fields)}"))

    def demand_targets(self) -> None:
        """Every linear module that the adapter's own configuration targets, or saves whole, must have its tensors in the file.

        Experts are demanded one by one only where the file speaks of single experts: today's transformers fuses them, and an
        adapter trained on the fused modules targets them by another field.
        """
        if self.terms is None or self.terms.some_layers_only:
            return
        single_experts = any(self.places.all[key].fused for key in self.pairs)
        for key, place in self.places.all.items():
            trained = place.orientation and (single_experts or not place.fused) and self.terms.targets(place.paths())
            if not place.tied and (trained or self.terms.saves(place.parameter.rpartition(".")[0])):
                self.demand(key)

    def demand(self, key: str) -> None:
        """Fails once for a targeted tensor that the file says nothing about."""
        if key not in self.pairs and key not in self.replaced and key not in self.unjudged and key not in self._missing:
            self._missing.add(key)
            self.fail(key, "the adapter's own configuration names this module, but its file holds no tensor for it")

    def fail(self, subject: str, sentence: str) -> None:
        """A fault, unless the configuration says something that is not interpreted: then it may be as it should be."""
        self.findings.append(Finding(CODE, subject, Outcome.FAILED if self._understood else Outcome.NOT_INTERPRETED, sentence))

    def note(self, subject: str, sentence: str) -> None:
        self.findings.append(Finding(CODE, subject, Outcome.NOT_INTERPRETED, sentence))

    def _settle_pair(self, module: str, terms: Terms) -> None:
        a, b, path = module + LORA_A, module + LORA_B, module.removeprefix(PREFIX)
        present = [name for name in (a, b) if name in self.adapter.tensors]
        place = self.places.find(f"{path}.weight")
        try:
            if place is None:
                raise DamagedError(self._lost(f"{path}.weight"))
            if len(present) == 1:
                raise DamagedError(f"its partner {(b if present == [a] else a)} is not in the file")
            if place.key in self.pairs:
                raise DamagedError(f"{self.pairs[place.key].a} belongs to the same tensor {place.key}")
            self.pairs[place.key] = self._pair(a, b, path, place, terms)
            self.consumed += 2
        except DamagedError as error:
            self.fail(present[0], str(error))
            self._leave(place, f"{path}.weight", str(error))
        except NotInterpretedError as error:
            self.note(present[0], str(error))
            self._leave(place, f"{path}.weight", str(error))
            self.consumed += len(present)

    def _leave(self, place: Place | None, name: str, reason: str) -> None:
        """Marks the disk tensor that an unsettled adapter tensor is about, if there is one."""
        key = place.key if place is not None else name
        if key in self.base.tensors:
            self.unjudged[key] = reason

    def _pair(self, a: str, b: str, path: str, place: Place, terms: Terms) -> Pair:
        """The pair of one module, checked against the shape of the base weight and against the rank of the configuration."""
        weight, shape_a, shape_b = self.base.tensors[place.key], self.tensor(a).shape, self.tensor(b).shape
        if place.tied:
            raise NotInterpretedError(f"{place.key} is a tied weight; a delta on it is not interpreted")
        if place.orientation is None:
            raise NotInterpretedError(f"{place.key} is not the weight of a linear module, or is fused in a way this version does not know")
        if weight.dtype not in FLOATS:
            raise NotInterpretedError(f"{place.key} is stored as {weight.dtype}; known are {', '.join(FLOATS)}")
        if {self.tensor(a).dtype, self.tensor(b).dtype} - FLOATS.keys():
            raise NotInterpretedError(f"dtypes {self.tensor(a).dtype} and {self.tensor(b).dtype}; known are {', '.join(FLOATS)}")
        rank = terms.rank(path)
        out, into = (weight.shape if place.orientation == "out,in" else weight.shape[::-1]) if len(weight.shape) == 2 else (0, 0)
        if (shape_a, shape_b) != ((rank, into), (out, rank)):
            raise DamagedError(
                f"A {shape_a} and B {shape_b} do not fit {place.key} {weight.described()} "
                f"at rank {rank}: A ({rank}, {into}) and B ({out}, {rank}) were expected"
            )
        scaling = terms.scaling(path)
        if not math.isfinite(scaling):
            raise DamagedError(f"its scaling is {scaling}")
        return Pair(a, b, rank, scaling, place.orientation)

    def _settle_other(self, name: str, terms: Terms) -> None:
        """A tensor that is no lora_A or lora_B: a module saved whole, a kind for a later version, or one without a place."""
        path = name.removeprefix(PREFIX)
        module = LATER.split(path)[0]
        place = self.places.find(path) or self.places.find(f"{module}.weight")
        saved = terms.saves(path.rpartition(".")[0])
        try:
            if module != path:
                raise NotInterpretedError("this version does not interpret this kind of adapter tensor")
            if place is None and not saved:
                raise DamagedError(self._lost(path))
            if place is not None and not saved and self.complete:
                raise DamagedError(f"no field of the adapter's configuration says that {place.key} was trained")
            if place is None or not saved or place.tied or self.tensor(name).shape != self.base.tensors[place.key].shape:
                raise NotInterpretedError("it would add, resize, untie or replace a tensor in a way this version does not interpret")
            if {self.tensor(name).dtype, self.base.tensors[place.key].dtype} - FLOATS.keys():
                raise NotInterpretedError(f"{self.base.tensors[place.key].dtype} replaced by {self.tensor(name).dtype} is not interpreted")
            self.replaced[place.key] = name
            self.consumed += 1
        except DamagedError as error:
            self.fail(name, str(error))
            self._leave(place, path, str(error))
        except NotInterpretedError as error:
            self.note(name, str(error))
            self._leave(place, path, f"{name}: {error}")
            self.complete = False
            self.consumed += 1

    def _lost(self, weight: str) -> str:
        """Why a name has no place; a base tensor that no module of the architecture owns cannot be given an orientation."""
        if weight in self.base.tensors:
            raise NotInterpretedError(f"no module of the architecture owns {weight}, so that its orientation is unknown")
        near = difflib.get_close_matches(weight, self.base.tensors, n=1, cutoff=0.6) if len(self.findings) < NEAREST_SHOWN else []
        hint = f"; nearest base weight: {near[0]} {self.base.tensors[near[0]].described()}" if near else ""
        return f"{weight} has no place in the base{hint}"
