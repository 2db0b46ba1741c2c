"""The accounts of one adapter: every tensor of its file finds its place in the base, or is named."""

import difflib
from collections.abc import Callable
from dataclasses import replace

from certify.errors import DamagedError, NotInterpretedError
from certify.expect.demands import demands
from certify.expect.draft import Draft
from certify.expect.names import Group, groups
from certify.expect.place import Names, Place
from certify.expect.terms import Terms, read_terms, uninterpreted
from certify.finding import Finding, Outcome
from certify.inputs.adapter import CONFIG, Adapter, AdapterTensor
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.dtypes import FLOATS

CODE = "C4"
NEAREST_SHOWN = 3  # unplaced tensors for which the nearest base weight is looked up


class Accounts:
    """Filled by `settle`, `compare_with_peft` and `demand_targets`, in this order.

    drafts    tensor → what the adapter makes of it; a tied weight that is not on disk stands under its parameter's name
    scalings  tensor → the factor of its only plain pair       new  tensor that the base has not → the adapter's
    parameters  those that were trained themselves (target_parameters) and are in the file
    unjudged  disk key → why                                   complete  False where something may change tensors that are not named here
    """

    def __init__(self, adapter: Adapter, base: Checkpoint, places: Names, weight: float = 1.0) -> None:
        self.adapter, self.base, self.places, self.weight = adapter, base, places, weight
        self.drafts: dict[str, Draft] = {}
        self.scalings: dict[str, float] = {}
        self.new: dict[str, AdapterTensor] = {}
        self.parameters: set[str] = set()
        self.unjudged: dict[str, str] = {}
        self.findings: list[Finding] = []
        self.consumed = 0
        self.complete = self._understood = True
        self.terms: Terms | None = None
        self._missing: set[str] = set()

    def tensor(self, name: str) -> AdapterTensor:
        return self.adapter.tensors[name]

    def draft(self, key: str) -> Draft:
        """Of one tensor, begun where there is none."""
        return self.drafts.setdefault(key, Draft(weight=self.weight))

    def settle(self) -> None:
        """Gives every tensor of the file its place."""
        from certify.expect.kinds import SETTLE

        fields = uninterpreted(self.adapter.config)
        if fields:
            self.complete = self._understood = False
            self.note(CONFIG, f"this version does not interpret {'; '.join(fields)}")
        try:
            self.terms = self._resolved(read_terms(self.adapter.config))
        except DamagedError as error:
            self.fail(CONFIG, str(error))
            return
        if not self.adapter.tensors:
            self.fail(self.adapter.files[1], "the adapter holds no tensor")
        for group in groups(self.adapter.tensors):
            self._settle(group, SETTLE[group.family])
        if fields:  # the pairs are known, what else happens to their tensors is not
            self.unjudged.update(dict.fromkeys(self.drafts, f"the adapter's configuration is not interpreted: {'; '.join(fields)}"))

    def demand_targets(self) -> None:
        """Every module that the adapter's own configuration targets, or saves whole, must have its tensors in the file."""
        if self.terms is not None:
            for key in demands(self, self.terms):
                self.demand(key)

    def demand(self, key: str) -> None:
        """Fails once for a targeted tensor that the file says nothing about."""
        if not (key in self.drafts or key in self.unjudged or key in self._missing):
            self._missing.add(key)
            self.fail(key, "the adapter's own configuration names this module, but its file holds no tensor for it")

    def fail(self, subject: str, sentence: str) -> None:
        """A fault, unless the configuration says something that is not interpreted: then it may be as it should be."""
        self.findings.append(Finding(CODE, subject, Outcome.FAILED if self._understood else Outcome.NOT_INTERPRETED, sentence))

    def note(self, subject: str, sentence: str) -> None:
        self.findings.append(Finding(CODE, subject, Outcome.NOT_INTERPRETED, sentence))

    def place(self, weight: str) -> Place:
        """Of a weight by its name when it was trained. Raises DamagedError where the base has no such weight."""
        if (place := self.places.find(weight)) is None:
            raise DamagedError(self._lost(weight))
        return place

    def key(self, place: Place) -> str:
        """Whose draft it is: a tied weight's own name where the place is that of the weight that it is tied to."""
        return place.parameter if self.places.source(place.parameter) and not self.places.of_parameter(place.parameter) else place.key

    def known_dtypes(self, key: str, *names: str) -> None:
        """Raises NotInterpretedError unless everything is stored in a float dtype that this version computes with."""
        unknown = [self.tensor(name).dtype for name in names if self.tensor(name).dtype not in FLOATS]
        if key in self.base.tensors and self.base.tensors[key].numbers is None:
            unknown.insert(0, self.base.tensors[key].dtype)
        if unknown:
            raise NotInterpretedError(f"{key}: stored as {unknown[0]}; known are {', '.join(FLOATS)}")

    def _resolved(self, terms: Terms) -> Terms:
        """With the modules that "all-linear" stands for; PEFT saves them, other writers leave the word."""
        if not terms.modules.unresolved:
            return terms
        try:
            return replace(terms, modules=terms.modules.resolved(self.places.linear(terms.task)))
        except NotInterpretedError as error:
            self.complete = self._understood = False
            self.note(CONFIG, str(error))
            return terms

    def _settle(self, group: Group, settle: Callable[["Accounts", Group, Terms], None]) -> None:
        assert self.terms is not None
        names = list(group.names.values())
        try:
            settle(self, group, self.terms)
            self.consumed += len(names)
        except DamagedError as error:
            self.fail(names[0], str(error))
            self._leave(group, str(error))
        except NotInterpretedError as error:
            self.note(names[0], str(error))
            marked = self._leave(group, str(error))
            self.complete &= marked and group.family == "pair"
            self.consumed += len(names)

    def _leave(self, group: Group, reason: str) -> bool:
        """Marks the disk tensors that an unsettled group is about; False where there are none."""
        own = group.names.keys() if group.family in ("base", "saved", "strange") else group.names.keys() & {"bias"}
        places = [self.places.find(f"{group.module}.{leaf}") for leaf in {"weight", *own}]
        keys = {place.key for place in places if place is not None} | {f"{group.module}.{leaf}" for leaf in own | {"weight"}}
        if not any(places):  # a module whose parameters are trained themselves: experts
            members = {member.parameter for member in self.places.members(group.module)}
            keys |= {key for key, place in self.places.all.items() if place.parameter in members}
        self.unjudged.update(dict.fromkeys(keys & self.base.tensors.keys(), reason))
        return bool(keys & self.base.tensors.keys())

    def _lost(self, weight: str) -> str:
        """Why a name has no place; a base tensor that no module of the architecture owns cannot be given an orientation."""
        if weight in self.base.tensors:
            raise NotInterpretedError(f"no module of the architecture owns {weight}, so that its orientation is unknown")
        near = difflib.get_close_matches(weight, self.base.tensors, n=1, cutoff=0.6) if len(self.findings) < NEAREST_SHOWN else []
        hint = f"; nearest base weight: {near[0]} {self.base.tensors[near[0]].described()}" if near else ""
        return f"{weight} has no place in the base{hint}"
