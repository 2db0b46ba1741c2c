"""What a run is doing: bytes, tensors, shards, memory, and the GPU where there is one."""

import resource
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
KIB = 1024


@dataclass
class Monitor:
    """Counters that the runner's threads add to and the display reads.

    total_bytes, total_tensors, total_shards  of the whole plan      bytes, tensors, shards  done so far
    resumed_bytes  of `bytes`, those that an earlier run had written
    """

    total_bytes: int = 0
    total_tensors: int = 0
    total_shards: int = 0
    bytes: int = 0
    tensors: int = 0
    shards: int = 0
    resumed_bytes: int = 0
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def expect(self, *, size: int, tensors: int, shards: int) -> None:
        """The whole plan is known."""
        self.total_bytes, self.total_tensors, self.total_shards = size, tensors, shards
        self.began = time.monotonic()

    def wrote(self, count: int) -> None:
        """That many more bytes of a shard are written."""
        with self._lock:
            self.bytes += count

    def finished_shard(self, tensors: int, *, resumed: int = 0) -> None:
        """A shard is durable; `resumed` bytes of it were there before."""
        with self._lock:
            self.shards += 1
            self.tensors += tensors
            self.bytes += resumed
            self.resumed_bytes += resumed

    def finished(self) -> None:
        """The last shard is durable."""
        self.ended = time.monotonic()

    @property
    def seconds(self) -> float:
        """How long the loop has taken, or took."""
        return (self.ended or time.monotonic()) - self.began

    @property
    def rate(self) -> float:
        """Bytes per second of this run."""
        return (self.bytes - self.resumed_bytes) / max(self.seconds, 1e-9)


def memory() -> tuple[int, int]:
    """(resident bytes now, their peak) of this process."""
    try:
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
        return tuple(int(fields[name].split()[0]) * KIB for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    except (OSError, KeyError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
        return peak, peak


class Gpus:
    """Utilisation and memory of every NVIDIA GPU of this machine; nothing where there is no driver."""

    def __init__(self) -> None:
        import pynvml

        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError:
            self._handles = []

    def read(self) -> list[dict[str, Any]]:
        """Per GPU: utilisation in percent, memory used and in all, in bytes."""
        found = []
        for index, handle in enumerate(self._handles):
            try:
                used, rates = self._nvml.nvmlDeviceGetMemoryInfo(handle), self._nvml.nvmlDeviceGetUtilizationRates(handle)
            except self._nvml.NVMLError:
                continue
            found.append({"gpu": index, "utilisation": rates.gpu, "memory_used": used.used, "memory_total": used.total})
        return found
