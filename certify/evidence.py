"""What the findings about one shard rest on: its tensors, the files that they are read from, and the terms of the judgement."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certify.encodings.coded import Coded
from certify.files import BASE
from certify.inputs.checkpoint import Checkpoint
from certify.inputs.folder import sha256
from certify.journal import Journal, fingerprint
from certify.key import evidence_key
from certify.seal import MERGED

if TYPE_CHECKING:
    from certify.examination import Examination

PACKAGES = ("mergegate", "torch", "peft", "transformers")
PACKAGE = Path(__file__).resolve().parent
SIDE = ("config.json", "model.safetensors.index.json")  # of the base: what names and dtypes are worked out from


@dataclass
class Shard:
    """tensors: (name, its file in the base, its file in the merged directory), "" for none      files: labels of those files"""

    tensors: list[tuple[str, str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def shards(base: Checkpoint, merged: Checkpoint, tensors: Iterable[tuple[str, str]]) -> dict[str, Shard]:
    """The shards of (shard, tensor name) pairs that are sorted by shard."""
    found, sides = {}, {"base": _read_together(base), "merged": _read_together(merged)}
    for name, members in groupby(tensors, itemgetter(0)):
        homes = [(tensor, _home(base, tensor), _home(merged, tensor)) for _, tensor in members]
        labels = {f"base/{home}" for _, home, _ in homes if home} | {f"merged/{home}" for _, _, home in homes if home}
        labels |= {f"{side}/{home}" for tensor, *_ in homes for side, files in sides.items() for home in files.get(tensor, ())}
        found[name] = Shard(homes, sorted(labels))
    return found


def _read_together(side: Checkpoint) -> dict[str, tuple[str, ...]]:
    """Codes and their scales, each → the files of both: neither is judged without the other."""
    pairs = [(name, tensor.scale.entry.name) for name, tensor in side.tensors.items() if isinstance(tensor, Coded)]
    return {name: (side.file_of(codes), side.file_of(scale)) for codes, scale in pairs for name in (codes, scale)}


def open_journal(examination: "Examination", report: Path) -> Journal | None:
    """The journal of a report directory, for this question about these inputs.

    None where this user can keep no secret, or an input cannot be read. Raises OSError where the report directory cannot be used.
    """
    prefixes = {"base": BASE, "merged": MERGED}
    key = evidence_key([report, *examination.folders.values()])

    def digest(label: str) -> str:
        side, _, file = label.partition("/")
        found = examination.digests.of(examination.folders[prefixes[side]] / file)
        if not examination.snapshot.holds(prefixes[side], file):
            raise OSError(f"{label} was changed while it was judged")
        return found

    try:
        terms = _terms(examination)
    except OSError:  # C1 says so
        return None
    return Journal(report, key, terms, digest) if key else None


def versions() -> dict[str, str]:
    """Of the packages that a judgement depends on."""
    return {name: _version(name) for name in PACKAGES}


@cache
def sources() -> str:
    """One digest for the gate's own code: what another gate found is no evidence for this one."""
    found = [f"{sha256(path)}  {path.relative_to(PACKAGE).as_posix()}" for path in sorted(PACKAGE.rglob("*.py"))]
    return fingerprint(found)


def _home(side: Checkpoint, tensor: str) -> str:
    return side.file_of(tensor) if tensor in side.tensors else ""


def _terms(examination: "Examination") -> dict[str, Any]:
    request, base = examination.request, examination.base
    return {
        "gate": sources(),
        "versions": versions(),
        "question": [request.criterion, request.output_dtype, request.level, list(examination.weights)],
        "adapters": [examination.digests.folder(adapter.directory) for adapter in examination.adapters],
        "base": [[name, tensor.dtype, tensor.shape] for name, tensor in sorted(base.tensors.items())],
        "side": {name: examination.digests.of(base.directory / name) for name in SIDE if (base.directory / name).is_file()},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
