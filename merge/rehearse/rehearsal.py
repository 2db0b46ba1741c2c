"""A rehearsal from beginning to end: foretell the real merge, make the twin, merge it, have it judged, and see that a defect is caught."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

from merge import engine
from merge.monitor import Monitor
from merge.rehearse import gate, twin
from merge.rehearse.forecast import Forecast, forecast
from merge.rehearse.gate import Judgement, Judging
from merge.rehearse.twin import Twin
from merge.task import Merge

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rehearsal:
    """What came of it.

    merging    seconds that the twin's merge took
    sound      what the gate said of the twin's merge
    layer      of a giant: the one whose modules were run      sampled  what the gate said of it
    lost       the weight that was left unmerged in a copy      spoiled  what the gate said of that copy
    """

    real: Merge
    foretold: Forecast
    twin: Twin
    merging: float
    sound: Judgement
    layer: str | None
    sampled: Judgement | None
    lost: str
    spoiled: Judgement
    seconds: float

    @property
    def caught(self) -> bool:
        """True where the gate rejected the copy, and named the weight."""
        return self.spoiled.verdict == "REJECTED" and self.lost in self.spoiled.rejected

    @property
    def passed(self) -> bool:
        return self.sound.verdict == "CERTIFIED" and self.caught and (self.sampled is None or self.sampled.spotless)

    def to_json(self) -> dict[str, Any]:
        """As data."""
        sketch = self.twin.sketch
        cut = {
            "factor": sketch.cut.factor,
            "widths": {str(n): small for n, small in sketch.cut.widths.items()},
            "ranks": dict(sketch.ranks),
        }
        return {
            "passed": self.passed,
            "twin": {
                "bytes": self.twin.size,
                "tensors": self.twin.work.plan.counts,
                "other_blocks": sketch.bent,
                "merge_seconds": self.merging,
                **cut,
            },
            "gate": asdict(self.sound),
            "sample": self.sampled and {"layer": self.layer, **asdict(self.sampled)},
            "defect": {"unmerged": self.lost, "caught": self.caught, **asdict(self.spoiled)},
            "forecast": self.foretold.to_json(),
            "seconds": round(self.seconds, 3),
        }


def rehearse(real: Merge, room: Path, disk: Path, say: Say, *, workers: int, planned: float, weights: int, seed: int = 0) -> Rehearsal:
    """room  takes the twin and the gate's reports      disk  a folder where the real output will lie      weights  real ones to be tried

    Raises MergeError where the real merge would be refused, or no twin of it can be made.
    """
    began = time.monotonic()
    say("measuring this machine on slabs of the real merge")
    foretold = forecast(real, disk, workers=workers, planned=planned, weights=weights)
    say("making the twin")
    small = twin.make(real, room, seed=seed)
    say("merging the twin")
    before = time.monotonic()
    engine.run(small.work, Monitor(), workers=1, processes=workers)  # tensors are so small that threads would wait for each other
    merging = time.monotonic() - before
    spoiled = replace(small.work, out=room / "merged-with-a-defect")
    lost = gate.spoil(small.work, spoiled.out)
    level = gate.level(small.work)
    say(f"the gate judges the twin's merge ({level}) and a copy with a defect")
    only, layer = escape(lost) if gate.is_giant(small.work) else None, gate.sample(small.work)
    judging = [Judging(small.work, room / "report", level), Judging(spoiled, room / "report-of-the-defect", "weights", only)]
    judging += [Judging(small.work, room / "report-of-a-layer", "layers", f"{escape(layer)}*")] if layer else []
    with ThreadPoolExecutor(len(judging)) as waiting:
        try:
            sound, caught, *sampled = waiting.map(Judging.end, judging)
        finally:
            for process in judging:
                process.stop()
    seconds = planned + time.monotonic() - began
    return Rehearsal(real, foretold, small, merging, sound, layer, next(iter(sampled), None), lost, caught, seconds)
