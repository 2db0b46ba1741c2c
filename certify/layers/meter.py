"""How many numbers read from disk are alive at once, counted; and the memory that a run will need, told before it starts."""

import os
import weakref
from pathlib import Path

from torch import Tensor

CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"))  # limit and use of a container, version 2


class Meter:
    """live: numbers of loaded tensors that still exist; peak: the most so far."""

    def __init__(self) -> None:
        self.live = self.peak = 0

    def hold(self, loaded: Tensor) -> Tensor:
        """Counts a tensor until it is gone."""
        self.live += loaded.numel()
        self.peak = max(self.peak, self.live)
        weakref.finalize(loaded, self._release, loaded.numel())
        return loaded

    def _release(self, count: int) -> None:
        self.live -= count


def available() -> int | None:
    """Bytes that this process can still take: the system's, or less in a container. None where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        try:
            free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None
    try:
        limit, used = (path.read_text().strip() for path in CGROUP)
        return free if limit == "max" else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free
