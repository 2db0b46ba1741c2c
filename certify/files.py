"""C1 of one judgement: the merged directory's weight files, index and strays, then every file of base and adapters that is rested on."""

from collections.abc import Sequence
from pathlib import Path

from certify.checks import c1_files
from certify.finding import Finding
from certify.inputs.adapter import Adapter
from certify.inputs.checkpoint import INDEX, Checkpoint
from certify.inputs.folder import regular_files

BASE, ADAPTER = "base: ", "adapter: "  # subjects that are no files of the merged directory


def labels(base: Path, merged: Path, adapters: Sequence[Path]) -> dict[str, Path]:
    """How the subjects of each directory begin, and the directory."""
    return {"": merged, BASE: base, **dict(zip(numbered(len(adapters)), adapters, strict=True))}


def numbered(adapters: int) -> list[str]:
    """The labels of so many adapters."""
    return [ADAPTER] if adapters == 1 else [f"adapter {number}: " for number in range(1, adapters + 1)]


class Files:
    """subjects: file names of the merged directory, and labels for those of the inputs; sorted."""

    def __init__(self, base: Checkpoint, merged: Checkpoint, adapters: Sequence[Adapter], output_dtype: str = "same") -> None:
        self.base, self.merged, self.output_dtype = base, merged, output_dtype
        self._inputs = _inputs(base, adapters)
        self._held = {*merged.weight_files, *merged.stray, *({INDEX} if merged.sharded else ())}
        self.subjects = tuple(sorted({*self._held, *self._inputs}))

    def examine(self, name: str) -> Finding:
        """C1 of one subject."""
        if name in self._inputs:
            own = ["a weight file of the merged directory bears this name, which means another file here"] if name in self._held else []
            return c1_files.damaged_input(name, own + self._inputs[name])
        if name == INDEX:
            return c1_files.index_file(name, self.merged, self.base, self.output_dtype)
        if name in self.merged.stray:
            return c1_files.stray_file(name, self.merged)
        return c1_files.weight_file(name, name, self.merged, self.base)


def _inputs(base: Checkpoint, adapters: Sequence[Adapter]) -> dict[str, list[str]]:
    """Subjects of base and adapters, each with its problems; sound or not, every file is listed."""
    problems: dict[str, list[str]] = {}
    if base.sharded:
        problems[BASE + INDEX] = list(base.index_problems)
    digested = {*regular_files(base.directory), *base.absent}
    for file in base.weight_files:
        told = ["the index names this file, but it does not exist"] if file in base.absent else []
        told += [] if file in digested else ["lies in a hidden or linked folder, which the digest of the base leaves out"]
        problems[BASE + file] = told + list(base.headers[file].problems if file in base.headers else ())
    for label, adapter in zip(numbered(len(adapters)), adapters, strict=True):
        problems |= {label + file: [what for where, what in adapter.problems if where == file] for file in adapter.files}
    return problems
