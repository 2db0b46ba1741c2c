"""What a person sees of a run: a live bar on a terminal, plain lines elsewhere, and a closing summary worth reading."""

import json
import shlex
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from merge import fidelity
from merge.manifest import Manifest
from merge.monitor import Gpus, Monitor, memory
from merge.sink import STATE
from merge.task import Merge

REFRESH = 0.2  # seconds between two looks at the counters
PLAIN_EVERY = 5.0  # seconds between two plain lines, and between two samples in the metrics file
CRITERIA = {"faithful": "faithful", "stochastic": "faithful"}  # rule → what the gate is to judge by
REMEDY = {  # rule → what to do where too little was kept
    "nearest": "Merge again with --rounding faithful, into a new --out, to keep it.",
    "faithful": "Merge again with a finer --output-dtype, or more --rounds, into a new --out.",
}
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def human(count: float) -> str:
    """Bytes with a binary unit: 1.5 GiB."""
    power = 0
    while count >= 1024 and power < len(UNITS) - 1:
        count, power = count / 1024, power + 1
    return f"{count:.0f} {UNITS[power]}" if power == 0 else f"{count:.1f} {UNITS[power]}"


def figures(monitor: Monitor, gpus: Gpus) -> dict[str, Any]:
    """One sample of a run: counters, bytes per second, memory, GPUs."""
    resident, peak = memory()
    return {
        "seconds": round(monitor.seconds, 3),
        "bytes": monitor.bytes,
        "resumed_bytes": monitor.resumed_bytes,
        "tensors": monitor.tensors,
        "shards": monitor.shards,
        "bytes_per_second": round(monitor.rate),
        "rss": resident,
        "peak_rss": peak,
        "gpus": gpus.read(),
    }


class Metrics:
    """merge-run.jsonl: one JSON line per sample of this run, then one for its end. Exempt from "same inputs, same bytes"."""

    def __init__(self, path: Path, out: Path, workers: int) -> None:
        self._path, self._out, self._workers = path, out, workers

    def write(self, event: str, sample: dict[str, Any]) -> None:
        """Append a line, once there is an output to belong to."""
        if self._out.is_dir():
            with self._path.open("a") as stream:
                stream.write(json.dumps({"event": event, "workers": self._workers, **sample}, sort_keys=True) + "\n")


@contextmanager
def watched(monitor: Monitor, metrics: Metrics, out: Path, *, quiet: bool) -> Iterator[Gpus]:
    """Show a run while it goes on, on stderr, and sample it into the metrics file."""
    console, gpus, over = Console(stderr=True, quiet=quiet), Gpus(), threading.Event()
    show = _bar if console.is_terminal else _lines

    def look() -> None:
        last = time.monotonic()
        with show(console, monitor) as update:
            while not over.wait(REFRESH):
                sample = figures(monitor, gpus)
                due = time.monotonic() - last >= PLAIN_EVERY
                update(sample, due)
                if due and (out / STATE).is_dir():
                    metrics.write("sample", sample)
                    last = time.monotonic()

    thread = threading.Thread(target=look, name="display", daemon=True)
    thread.start()
    try:
        yield gpus
    finally:
        over.set()
        thread.join()


@contextmanager
def _bar(console: Console, monitor: Monitor) -> Iterator[Any]:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("planning", total=None, text="")

        def update(sample: dict[str, Any], _due: bool) -> None:
            total = monitor.total_bytes or None
            progress.update(
                task, description="merging" if total else "planning", total=total, completed=monitor.bytes, text=_text(monitor, sample)
            )

        yield update


@contextmanager
def _lines(console: Console, monitor: Monitor) -> Iterator[Any]:
    def update(sample: dict[str, Any], due: bool) -> None:
        if due and monitor.total_bytes:
            left = (monitor.total_bytes - monitor.bytes) / max(monitor.rate, 1.0)
            console.print(f"{monitor.bytes / monitor.total_bytes:4.0%}  {_text(monitor, sample)}  {left:.0f} s left", highlight=False)

    yield update


def _text(monitor: Monitor, sample: dict[str, Any]) -> str:
    shown = [
        f"shard {monitor.shards}/{monitor.total_shards}",
        f"tensors {monitor.tensors}/{monitor.total_tensors}",
        f"{human(monitor.rate)}/s",
        f"RSS {human(sample['rss'])}",
    ]
    shown += [f"GPU{g['gpu']} {g['utilisation']}% {human(g['memory_used'])}/{human(g['memory_total'])}" for g in sample["gpus"]]
    return "  ".join(shown)


def summary(manifest: Manifest, sample: dict[str, Any], *, whole_seconds: float, certify: str) -> str:
    """The closing words of a finished merge."""
    tensors = manifest.tensors
    total = sum(tensors.values())
    resumed = f", {human(sample['resumed_bytes'])} of it by an earlier run" if sample["resumed_bytes"] else ""
    lines = [
        f"Merged.  {total:,} tensors: {counted(tensors)}.",
        f"         {manifest.adapter_tensors:,} of {manifest.adapter_tensors:,} adapter tensors consumed.",
        f"         {human(sample['bytes'])} in {len(manifest.shards)} shards{resumed}.",
        f"         {sample['seconds']:.1f} s merging, {whole_seconds:.1f} s in all; peak memory {human(sample['peak_rss'])}.",
        f"         {manifest.out}",
    ]
    if manifest.stale:
        lines.append(f"Not carried: {', '.join(manifest.stale)}")
    lines += _kept(manifest)
    return "\n".join([*lines, "Next, have it judged:", f"  {certify}"])


def _kept(manifest: Manifest) -> list[str]:
    """How much of the adapter's change is in the stored weights; what to do where that is too little."""
    table = manifest.fidelity
    if not table:
        return []
    whole, lost = table[fidelity.WHOLE], fidelity.lost(table)
    lines = [
        f"         {whole['retention']:.3f} of the adapter's change is in the stored weights, "
        f"with {whole['error_energy']:.2f} times its size in rounding noise."
    ]
    if lost:
        lines += [
            f"WARNING  {len(lost):,} of {len(table) - 1:,} merged tensors keep less than {fidelity.WARNING} of it: the rest is smaller "
            f"than the steps of the stored numbers. The worst: {lost[0]}, {table[lost[0]]['retention']:.3f}.",
            f"         {REMEDY.get(manifest.options['rounding'], REMEDY['nearest'])}",
        ]
    return lines


def counted(tensors: Mapping[str, int]) -> str:
    """What happens to how many tensors."""
    words = {"merged": "merged", "replaced": "replaced", "copied": "carried byte for byte"}
    words |= {"converted": "in another dtype", "scales": "scales of merged weights"}
    return ", ".join(f"{tensors[kind]:,} {word}" for kind, word in words.items() if kind in tensors)


def certify_command(work: Merge) -> str:
    """The complete command that has the result judged."""
    return shlex.join(["lora-certify", "run", *certify_options(work)])


def certify_options(work: Merge) -> list[str]:
    """What the gate must be told of a merge."""
    inputs = [f"--base={work.base}", *(f"--adapter={folder}" for folder in work.adapters), *(f"--weight={w}" for w in work.weights)]
    criterion = CRITERIA.get(work.plan.options.rounding, "nearest")
    return [*inputs, f"--merged={work.out}", f"--criterion={criterion}", f"--output-dtype={work.options.output_dtype}"]


def forecast(work: Merge, *, memory_bytes: int, kept: tuple[float, float] | None) -> str:
    """What a merge would do, for a person. kept  of the delta, in the base's own codes and in bf16; None where nothing is quantised"""
    plan, files = work.plan, work.side_files
    counts = plan.counts
    lines = [
        f"{sum(counts.values()):,} tensors in {len(plan.shards)} shards: {counted(counts)}.",
        f"{plan.adapter_tensors:,} of {plan.adapter_tensors:,} adapter tensors have their place.",
        f"Disk   {human(work.disk)} ({work.disk:,} bytes), {len(files.origins)} side files included.",
        f"Memory about {human(memory_bytes)} at the peak.",
    ]
    if kept:
        lines.append(f"Kept   about {kept[work.decoded]:.2f} of the delta, rounded to nearest, by a few slabs of the merged weights.")
    if plan.dropped:
        lines.append(f"{len(plan.dropped):,} scales are not needed any more and are left out, config.json's quantization_config with them.")
    if files.stale:
        lines.append(f"Not carried: {', '.join(files.stale)}")
    twice = sum(operation.passes == 2 for operation in plan.operations)
    if twice:
        lines.append(f"{twice} tensors will be read twice, slab by slab: the norms of their columns come first.")
    if plan.edits:
        lines.append(f"config.json will say {', '.join(f'{name} = {value}' for name, value in sorted(plan.edits.items()))}")
    if plan.literal:
        lines.append(
            "transformers does not know the architecture, and remote code is never run: names were taken as they stand. Look at them:"
        )
        for operation in plan.operations:
            given = [read.tensor.name for read in operation if read.place == "adapter"]
            lines += [f"  {operation.target}  ←  {', '.join(given)}"] if given else []
    return "\n".join([*lines, f"Plan   {plan.digest}", "Nothing was written."])
