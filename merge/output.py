"""The state of an output directory: empty, half-finished, finished, or somebody else's; and removing what is ours."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from merge import journal, manifest
from merge.errors import NOTHING_WRITTEN, OutputError
from merge.manifest import MANIFEST, Manifest
from merge.sink import PARTIAL, STATE, Sink
from merge.source import INDEX
from merge.task import RUN_FILE, Merge


def finished(merge: Merge, sink: Sink) -> Manifest | None:
    """The manifest of OUT if this very merge is finished there; raises OutputError if another one is, or if a shard is gone.

    A base is recognised by its name, its headers, and by not having been modified after the manifest was written.
    """
    found = manifest.read(merge.out)
    if found is None:
        return None
    facts, written = merge.facts, (merge.out / MANIFEST).stat().st_mtime_ns
    late = [file for file, (_, modified, _) in facts["base"]["shards"].items() if modified > written]
    base = {"name": merge.base.resolve().name, "headers": facts["base"]["headers"], "modified since": late}
    then = {
        "engine": dict(found.engine),
        "options": dict(found.options),
        "base": {**found.base, "modified since": []},
        "adapters": [{key: value for key, value in adapter.items() if key != "path"} for adapter in found.adapters],
        "plan": found.plan,
    }
    journal.refuse_changed(merge.out, then, {**facts, "base": base})
    for file, entry in found.shards.items():
        if not (merge.out / file).is_file() or (merge.out / file).stat().st_size != entry["size"]:
            raise OutputError(f"{merge.out / file} is not what the manifest says; merge again with --overwrite. {NOTHING_WRITTEN}")
    if (merge.out / STATE).exists():
        journal.Journal(sink).close(done=True)
    return found


def clean(out: Path, *, also_finished: bool = False) -> int:
    """Remove what a merge wrote into OUT; the number of files removed.

    also_finished  also a finished output, which otherwise is refused

    Raises OutputError if OUT carries neither journal nor manifest of ours, or if a merge is at work there.
    """
    whole, lines = manifest.read(out), journal.read(out)
    if whole and not also_finished:
        raise OutputError(f"{out} holds a finished merge; remove it by hand if that is meant. Nothing was removed.")
    if not whole and not lines and not (out / STATE).is_dir():
        if also_finished:
            return 0
        raise OutputError(f"{out} carries no half-finished merge of ours. Nothing was removed.")
    sink = Sink(out)
    sink.prepare()
    log = journal.Journal(sink)
    names = lines[0]["files"] if lines else [*whole.shards, INDEX, *whole.side_files, MANIFEST, RUN_FILE] if whole else []
    outside = [name for name in names if not (out / name).resolve().is_relative_to(out.resolve()) or ".." in Path(name).parts]
    if outside:
        log.close()
        raise OutputError(f"{out} names {outside[0]!r} as a file of its own, which lies outside it. Nothing was removed.")
    present = [name for name in names if (out / name).exists() or (out / (name + PARTIAL)).exists()]
    sink.remove(reversed(present))  # the manifest first: without it the output is not complete
    log.close(done=True)
    if not any(out.iterdir()):
        out.rmdir()
    return len(present)


@dataclass(frozen=True, slots=True)
class Status:
    """How far the merge in one output directory has come: "finished", "half-finished" or "nothing"."""

    state: str
    done: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def status(out: Path) -> Status:
    """What the journal or the manifest of OUT says; reads nothing else."""
    whole = manifest.read(out)
    if whole:
        return Status("finished", tuple(whole.shards))
    lines = journal.read(out)
    if not lines:
        return Status("nothing")
    done = tuple(line["file"] for line in lines[1:])
    shards = lines[0]["base"]["shards"]
    return Status("half-finished", done, tuple(file for file in shards if file not in done))


def refuse_foreign(out: Path) -> None:
    """Raises OutputError unless OUT is new, empty, or carries a journal or manifest of ours."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is not a directory. {NOTHING_WRITTEN}")
    entries = {path.name for path in out.iterdir()} if out.is_dir() else set()
    ours = not entries - {STATE} or bool(journal.read(out)) or manifest.read(out) is not None
    if not ours:
        raise OutputError(f"{out} is not empty, and no merge of ours began there. {NOTHING_WRITTEN}")


def refuse_full_disk(merge: Merge) -> None:
    """Raises OutputError if what is still to be written does not fit beside what a half-finished merge has written."""
    place = next(folder for folder in (merge.out.absolute(), *merge.out.absolute().parents) if folder.exists())
    there = sum(path.stat().st_blocks * 512 for path in merge.out.glob("*.safetensors*")) if merge.out.is_dir() else 0
    free = shutil.disk_usage(place).free
    if merge.disk - there > free:
        raise OutputError(
            f"{merge.out} needs {merge.disk - there:,} more bytes, and {free:,} are free: the disk is too small. {NOTHING_WRITTEN}"
        )
