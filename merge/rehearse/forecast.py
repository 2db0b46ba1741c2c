"""What the real merge will do and take: operations, disk to the byte, memory, time on this machine, and what its storage will keep."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge import fidelity
from merge.forecast import memory as foretold
from merge.rehearse import pace, sample
from merge.rehearse.pace import Pace
from merge.task import Merge


@dataclass(frozen=True)
class Forecast:
    """What is known of a merge before it is run.

    counts  tensors by what happens to them      adapter_tensors  all of which have their place
    files   bytes of every file, by name; the manifest and the figures of the run, which say what was measured, come on top
    free    bytes on the disk where `room` is      memory  bytes at the peak, with that many workers
    kept    rule → tensor → its figures, of a few real weights (merge/fidelity.py); empty unless asked for
    """

    counts: Mapping[str, int]
    adapter_tensors: int
    shards: int
    files: Mapping[str, int]
    free: int
    memory: int
    workers: int
    pace: Pace
    kept: Mapping[str, Mapping[str, Mapping[str, float]]]

    @property
    def disk(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        """As data."""
        seconds = {"before": self.pace.before, "work": self.pace.work, "disk": self.pace.disk, "whole": self.pace.seconds}
        return {
            "tensors": dict(self.counts),
            "adapter_tensors": self.adapter_tensors,
            "disk": {"bytes": self.disk, "free": self.free, "files": dict(self.files)},
            "memory": {"bytes": self.memory, "workers": self.workers},
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "disk_bytes_per_second": round(self.pace.disk_rate),
            "retention": {rule: dict(figures) for rule, figures in self.kept.items()},
        }

    def whole(self, rule: str) -> float | None:
        """Retention of the sampled weights together."""
        found = self.kept.get(rule, {}).get(fidelity.WHOLE)
        return found["retention"] if found else None


def forecast(work: Merge, room: Path, *, workers: int, planned: float, weights: int) -> Forecast:
    """Of one merge, before it is run.

    room     a folder on the disk that will be written to      planned  seconds until the plan stood
    weights  real ones that are merged in memory by every rule
    """
    files = {shard.file: shard.size for shard in work.plan.shards}
    files |= {name: path.stat().st_size for name, path in work.side_files.sources.items()}
    files |= {name: len(data) for name, data in work.written.items()}
    return Forecast(
        counts=work.plan.counts,
        adapter_tensors=work.plan.adapter_tensors,
        shards=len(work.plan.shards),
        files=files,
        free=shutil.disk_usage(room).free,
        memory=foretold(work.plan, workers),
        workers=workers,
        pace=pace.measure(work, room, workers=workers, planned=planned),
        kept=sample.retention(work, weights),
    )
