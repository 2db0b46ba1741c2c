"""Files of which only the headers are there, as a sparse copy has them: their numbers are made up where the pace of a merge is measured."""

from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

import torch

from merge.catalog import Tensor
from merge.encodings import CODES
from merge.rehearse import numbers
from merge.runners.inputs import memory_of
from merge.source import Reader

PATTERN = 1 << 18  # numbers that are repeated
BLOCK = 512  # bytes that the file system counts in
SCALE = 2.0**-12  # of codes that are made up: their weights are of an ordinary size


def is_hollow(folder: Path, files: Iterable[str]) -> bool:
    """True where most of the files' bytes are holes."""
    stats = [(folder / file).stat() for file in set(files)]
    return 2 * BLOCK * sum(stat.st_blocks for stat in stats) < sum(stat.st_size for stat in stats)


class Imagined(Reader):
    """Normal numbers in the place of a file's own, at about the cost of reading them from memory."""

    def __init__(self, folder: Path, tensors: Iterable[Tensor]) -> None:
        super().__init__(folder)
        self._tensors: dict[str, list[Tensor]] = {}
        for tensor in sorted(tensors, key=lambda tensor: tensor.start):
            self._tensors.setdefault(tensor.file, []).append(tensor)
        noise = torch.randn(PATTERN, generator=torch.Generator().manual_seed(0))
        self._patterns = {dtype: memoryview(numbers.encoded(numbers.SIGMA * noise, dtype)) for dtype in ("BF16", "F16")}
        self._patterns["F32"] = self._patterns["U8"] = memoryview(numbers.encoded(torch.full((PATTERN,), SCALE), "F32"))
        self._patterns["F8_E8M0"] = memoryview(numbers.encoded(torch.full((PATTERN,), SCALE), "F8_E8M0"))
        codes = (noise * numbers.SIGMA / SCALE).to(torch.float8_e4m3fn).view(torch.uint8)
        self._patterns[CODES] = memory_of(codes)

    def into(self, file: str, start: int, view: memoryview) -> None:
        """Fill `view` with numbers of the dtype that is stored there."""
        held = self._tensors[file]
        dtype = held[bisect_right(held, start, key=lambda tensor: tensor.start) - 1].dtype
        pattern = self._patterns.get(dtype, self._patterns["F32"])
        for place in range(0, len(view), len(pattern)):
            part = view[place : place + len(pattern)]
            part[:] = pattern[: len(part)]
