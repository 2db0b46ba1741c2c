"""No false alarms: sound merges of many kinds, each of which the gate must certify. `python -m exam.sound [--json FILE]`.

A sound merge is right by construction: one rounding of W + Δ, added up in float32 or float64 in whatever order, a stochastic rounding, or
what PEFT makes, each judged under the criterion that is named for it. The level is `modules`, so that C1 to C8 are asked. C8's floor is
left at its default but for ρ = 1e-3, where bf16 keeps half of a change at best, and C8 is right to say so: there it is 0.

PEFT's merged values are written into the base's own layout, since its save loses what transformers does not load (the MTP layer) and
recasts what transformers keeps in another dtype; those tensors, which no adapter touches, are the base's own, and are counted.

Left out, since the gate does not interpret it yet: deltas on embeddings and tied weights, DoRA, trained biases. Quantised: `exam.giants`.
"""

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch

import certify
from certify.verdict import Verdict
from exam.cases import colossal_adapter
from exam.families import DTYPES, FAMILIES, Family, make_adapter, make_base
from exam.producers import CRITERIA, ONE_ONLY, PRODUCERS, RECASTING, Inputs, read_inputs
from merge.errors import MergeError

RHOS = (0.3, 1e-2, 1e-3)
EVERY = 3  # of the whole product: prime to the number of producers, so that all of them come up everywhere
LEAST = 5  # merges that every stratum must hold
COLOSSAL_SCALING = 2.0  # α/r of exam.cases.colossal_adapter

FEATURES: Mapping[str, Callable[[Family], dict[str, Any]]] = {
    "plain": lambda _: {},
    "rsLoRA": lambda _: {"use_rslora": True},
    "patterns": lambda family: {"rank_pattern": {family.targets[0]: 2}, "alpha_pattern": {family.targets[1]: 4}},
    "regex": lambda family: {
        "target_modules": rf".*\.({'|'.join(family.targets)})",
        "alpha_pattern": {rf".*\.1\..*\.{family.targets[0]}": 6},
    },
    "excluded": lambda family: {"exclude_modules": [family.targets[2]]},
    "some layers": lambda _: {"layers_to_transform": [1]},
    "modules_to_save": lambda family: {"modules_to_save": list(family.saved)},
    ".bin": lambda _: {"pickle": True},
    "bf16 factors": lambda _: {"half": True},
    "B = 0": lambda family: {"untrained": family.targets[0]},
}
EXPERTS, TWO = "experts one by one", "two adapters"
WEIGHTS = (0.5, 2.0)  # of the two adapters


@dataclass(frozen=True, slots=True)
class Sound:
    """One sound merge. output: the dtype that it is written in, "same" for the base's."""

    family: str
    feature: str
    dtype: str
    producer: str
    output: str
    layout: str
    rho: float

    def __str__(self) -> str:
        return "-".join(str(value).replace(" ", "_") for value in astuple(self))

    @property
    def criterion(self) -> str:
        return CRITERIA[self.producer]

    def strata(self) -> Iterator[tuple[str, str]]:
        """(axis, value) of everything that this merge counts for."""
        for axis in ("family", "feature", "dtype", "producer", "layout", "criterion"):
            yield axis, getattr(self, axis)
        yield "output", self.output if self.output == "same" else f"{self.dtype} → {self.output}"
        yield "ρ", "ColossalAI's" if self.feature == EXPERTS else f"{self.rho:g}"
        for trait in FAMILIES[self.family].traits:
            yield "trait", trait


def grid(every: int = EVERY) -> Iterator[Sound]:
    """One in so many of family × dtype × feature × producer, as far as they can be; layouts and sizes of delta take turns."""
    turns = itertools.cycle(itertools.product(("sharded", "single"), RHOS))
    for family, dtype, feature, producer, output in itertools.islice(_product(), 0, None, every):
        yield Sound(family, feature, dtype, producer, output, *next(turns))


def _product() -> Iterator[tuple[str, str, str, str, str]]:
    """(family, dtype, feature, producer, output dtype)."""
    for (name, family), dtype in itertools.product(FAMILIES.items(), DTYPES):
        recast = [*itertools.product(RECASTING, (other for other in DTYPES if other != dtype))]
        ways = [*((producer, "same") for producer in PRODUCERS), *recast]
        for feature in (*FEATURES, TWO, EXPERTS):
            yield from ((name, dtype, feature, *way) for way in ways if _possible(family, feature, way[0]))


def _possible(family: Family, feature: str, producer: str) -> bool:
    """What cannot be: PEFT loses experts that are named one by one, and only a weight of 1 has a meaning for a head that is replaced."""
    if feature == EXPERTS:
        return bool(family.experts) and not producer.startswith("PEFT")
    return feature != TWO or (producer not in ONE_ONLY and family.task != "SEQ_CLS")


def sample() -> Iterator[Sound]:
    """One merge of every family × feature; dtypes and producers take turns."""
    groups: dict[tuple[str, str], list[Sound]] = defaultdict(list)
    for sound in grid():
        groups[sound.family, sound.feature].append(sound)
    for number, group in enumerate(groups.values()):
        yield group[number * 3 % len(group)]


class Shelf:
    """Bases and adapters, each made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._scalings: dict[Path, Mapping[str, float]] = {}

    def inputs(self, sound: Sound) -> Inputs:
        """What one merge is made from. The scalings are those that PEFT gave its own layers when it made the adapter."""
        base = self._base(sound.family, sound.dtype, sound.layout)
        adapters = tuple(self._adapter(sound, base, seed) for seed in ((11, 12) if sound.feature == TWO else (11,)))
        weights = WEIGHTS if sound.feature == TWO else (1.0,)
        scalings = tuple(self._scalings[adapter] for adapter in adapters)
        return read_inputs(base, sound.dtype, adapters, weights, scalings, flipped="conv1d" in FAMILIES[sound.family].traits)

    def _base(self, family: str, dtype: str, layout: str) -> Path:
        directory = self.root / f"{family}-{dtype}-{layout}"
        if not directory.exists():
            make_base(family, dtype, directory, layout)
        return directory

    def _adapter(self, sound: Sound, base: Path, seed: int) -> Path:
        directory = self.root / f"{sound.family}-{sound.feature}-{sound.rho}-{seed}"
        if not directory.exists():
            if sound.feature == EXPERTS:
                colossal_adapter(base, directory, FAMILIES[sound.family].experts)
                self._scalings[directory] = defaultdict(lambda: COLOSSAL_SCALING)
            else:
                options = FEATURES["plain" if sound.feature == TWO else sound.feature](FAMILIES[sound.family])
                self._scalings[directory] = make_adapter(sound.family, base, directory, sound.rho, seed=seed, **options)
        return directory


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one sound merge.

    alarm    what the gate says against it; empty if it is certified
    refused  why the engine would not make it; nothing was judged then
    foreign  untouched tensors that PEFT's save lost or recast
    """

    alarm: str = ""
    refused: str = ""
    foreign: int = 0


def judged(sound: Sound, shelf: Shelf, out: Path) -> Outcome:
    """One merge, made and judged; nothing is left of it."""
    inputs = shelf.inputs(sound)
    try:
        foreign = PRODUCERS[sound.producer](inputs, out, sound.output)
    except MergeError as error:
        return Outcome(refused=str(error))
    try:
        return Outcome(alarm(sound, inputs, out), foreign=foreign)
    finally:
        shutil.rmtree(out)


def alarm(sound: Sound, inputs: Inputs, out: Path) -> str:
    """What the gate says against a sound merge; empty if it is certified."""
    floor = 0.0 if sound.rho == min(RHOS) and sound.feature != EXPERTS else 0.5
    terms: dict[str, Any] = {"criterion": sound.criterion, "output_dtype": sound.output, "min_retention": floor}
    certificate = certify.judge(inputs.base, inputs.adapters, out, weights=inputs.weights, level="modules", **terms)
    if certificate.verdict is not Verdict.CERTIFIED:
        return f"{certificate.verdict}: {certificate.reason}"
    counted = [certificate.statement["predicate"]["tensors"][kind] for kind in ("merged", "replaced")]
    expected = [len(inputs.deltas), len(inputs.replaced)]
    return "" if counted == expected else f"{counted} tensors merged and replaced, {expected} were"


def table(made: Iterable[Sound]) -> dict[str, dict[str, int]]:
    """Axis → value → merges."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sound in made:
        for axis, value in sound.strata():
            counts[axis][value] += 1
    return {axis: dict(found) for axis, found in counts.items()}


def main() -> int:
    """Exit code: 1 on any false alarm, on a merge that the engine refuses, or if a stratum is too thin to mean anything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the counts and the alarms there")
    parser.add_argument("--every", type=int, default=EVERY, metavar="N", help="judge one in N of the whole product")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, made, told = time.monotonic(), list(grid(options.every)), dict[Sound, Outcome]()
    with tempfile.TemporaryDirectory(prefix="exam-sound-") as room:
        shelf = Shelf(Path(room))
        for sound in made:
            told[sound] = found = judged(sound, shelf, Path(room) / "out")
            if found.alarm or found.refused:
                print(f"{'ALARM' if found.alarm else 'NOT MERGED'}  {sound}\n    {found.alarm or found.refused}", flush=True)
    report = summary(told) | {"seconds": round(time.monotonic() - began, 1)}
    for axis, counts in report["strata"].items():
        print(f"{axis:10s}" + ", ".join(f"{value} {count}" for value, count in counts.items()))
    print(f"{report['foreign']:,} untouched tensors that PEFT's save lost or recast are the base's own")
    print(f"thin strata: {', '.join(report['thin']) or 'none'}; not merged by the engine: {len(report['refused'])}")
    print(f"{report['judged']:,} sound merges judged, {len(report['alarms'])} false alarms, {report['seconds']:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return 1 if report["alarms"] or report["refused"] or report["thin"] else 0


def summary(told: Mapping[Sound, Outcome]) -> dict[str, Any]:
    """What was judged, how much of it in each stratum, and every alarm and refusal by name."""
    strata = table(sound for sound, found in told.items() if not found.refused)
    return {
        "judged": sum(not found.refused for found in told.values()),
        "alarms": {str(sound): found.alarm for sound, found in told.items() if found.alarm},
        "refused": {str(sound): found.refused for sound, found in told.items() if found.refused},
        "foreign": sum(found.foreign for found in told.values()),
        "thin": [f"{axis} {value}" for axis, counts in strata.items() for value, count in counts.items() if count < LEAST],
        "strata": strata,
    }


if __name__ == "__main__":
    sys.exit(main())
