"""A rehearsal as a person reads it."""

import shlex
from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from merge import fidelity
from merge.display import counted, human
from merge.rehearse import sample
from merge.rehearse.forecast import Forecast
from merge.rehearse.gate import Judgement, is_giant
from merge.rehearse.rehearsal import Rehearsal

COLOURS = {"CERTIFIED": "bold green", "REJECTED": "bold red", "INCOMPLETE": "bold yellow", "ERROR": "bold red"}
REASONS = 3  # of a verdict that are shown


def show(console: Console, found: Rehearsal) -> None:
    """The whole result: the twin, the forecast, and what to do next."""
    console.print(Panel(_twin(found), title=f"[bold]The twin of {_names(found)}", title_align="left", border_style="dim", padding=(1, 2)))
    console.print(Panel(_forecast(found), title="[bold]The real merge, foretold", title_align="left", border_style="dim", padding=(1, 2)))
    console.print(_ending(found), soft_wrap=True)


def _names(found: Rehearsal) -> str:
    return " + ".join(folder.resolve().name for folder in (found.real.base, *found.real.adapters))


def _rows(rows: Mapping[str, RenderableType]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in rows.items():
        grid.add_row(name, text)
    return grid


def _twin(found: Rehearsal) -> RenderableType:
    sketch, counts = found.twin.sketch, found.twin.work.plan.counts
    ranks = ", ".join(f"{real} → {small}" for real, small in sorted(sketch.ranks.items()))
    cut = f"widths cut to 1/{sketch.cut.factor}" if sketch.cut.factor > 1 else "dimensions as they are"
    same = f"{sum(counts.values()):,} tensors in {found.foretold.shards} shards: your keys, dtypes and files"
    bent = f"; {sketch.bent:,} weights have one block of scales where yours have several, or a whole one at the end" if sketch.bent else ""
    made = f"{same}; {cut}, ranks {ranks}; {human(found.twin.size)}{bent}"
    caught = ("REJECTED, as it should be", COLOURS["CERTIFIED"]) if found.caught else (found.spoiled.verdict, COLOURS["REJECTED"])
    codes = ", ".join(sorted({code for code, subject, _ in found.spoiled.failures if subject == found.lost})) or "no check"
    alone = ", and the gate was asked about it alone" if is_giant(found.twin.work) else ""
    planted = Text.assemble("the gate would catch a lost module: ", caught, f" by {codes}\n")
    planted.append(f"{found.lost} was left unmerged in a copy{alone}", "dim")
    return _rows(
        {
            "Made": made,
            "Merged": f"{_deeds(counts)}, in {found.merging:.1f} s",
            "Judged": _verdict(found.sound),
            **_layer(found),
            "Defect": planted,
        }
    )


def _deeds(counts: Mapping[str, int]) -> str:
    """What happens to how many tensors, where it happens to any."""
    return counted({kind: count for kind, count in counts.items() if count})


def _layer(found: Rehearsal) -> dict[str, RenderableType]:
    """Of a giant: what one layer answers."""
    judged = found.sampled
    if judged is None:
        return {}
    sign = ("nothing against it", COLOURS["CERTIFIED"]) if judged.spotless else (judged.verdict, COLOURS[judged.verdict])
    run = ", ".join(f"{code} {judged.passed[code]:,} passed and {judged.undecided[code]:,} undecided" for code in ("C5", "C9"))
    text = Text.assemble(f"{found.layer} was run, with and without its merge: ", sign, f"; {run}, in {judged.seconds:.0f} s")
    for _, subject, sentence in judged.failures[:REASONS]:
        text.append(f"\n{subject}: {sentence}", "dim")
    return {"Run": text}


def _verdict(judged: Judgement) -> Text:
    text = Text.assemble(
        (f"{judged.verdict}", COLOURS[judged.verdict]), f" at level {judged.level}: {judged.items:,} items in {judged.seconds:.0f} s"
    )
    sentences = {sentence: subject for _, subject, sentence in judged.failures} if judged.verdict != "CERTIFIED" else {}
    for sentence, subject in list(sentences.items())[:REASONS]:
        text.append(f"\n{subject}: {sentence}" if subject not in sentence else f"\n{sentence}", "dim")
    if len(sentences) > REASONS:
        text.append(f"\n… and {len(sentences) - REASONS:,} more", "dim")
    return text


def _forecast(found: Rehearsal) -> RenderableType:
    own = found.foretold
    beside = len(own.files) - own.shards
    disk = Text(f"{own.disk:,} bytes ({human(own.disk)}): {own.shards} shards, {beside} files beside them; the manifest comes on top")
    enough = own.free > own.disk
    disk.append(f"\n{human(own.free)} are free here{'' if enough else ': too little'}", "dim" if enough else COLOURS["REJECTED"])
    rows: dict[str, RenderableType] = {
        "Tensors": f"{sum(own.counts.values()):,}: {_deeds(own.counts)}; all {own.adapter_tensors:,} adapter tensors have their place",
        "Disk": disk,
        "Memory": f"about {human(own.memory)} at the peak, with {own.workers} workers",
        "Time": _time(own),
    }
    return _rows(rows | _kept(found))


def _time(own: Forecast) -> Text:
    pace = own.pace
    slower = f"the disk takes {_span(pace.disk)}" if pace.disk > pace.work else f"the work takes {_span(pace.work)}"
    text = Text(f"about {_span(pace.seconds)}: {_span(pace.before)} before the first shard, then {slower}")
    slabs = "made-up slabs of these shapes, since only headers are here," if pace.imagined else "slabs of this merge"
    text.append(f"\nby {slabs} on this machine, and a disk that stores {human(pace.disk_rate)} a second", "dim")
    return text


def _kept(found: Rehearsal) -> dict[str, RenderableType]:
    own = found.foretold
    if not own.kept:
        return {"Kept": Text("add --sample 8 to see how much of the fine-tune will survive storage, on eight real weights", "dim")}
    text, chosen = Text(), found.real.plan.options.rounding
    for rule, figures in own.kept.items():
        share, low = own.whole(rule) or 0.0, sample.worst(figures)
        text.append("\n" if text else "")
        text.append(f"{share:.3f}", "bold green" if share >= fidelity.WARNING else "bold red")
        text.append(f" of the change, rounded {rule}, with {figures[fidelity.WHOLE]['error_energy']:.2f} times its size in noise")
        text.append(" — yours" if rule == chosen else "", "bold")
        text.append(f"\n  least: {low[1]:.3f} in {low[0]}" if low else "", "dim")
    text.append(f"\n{len(next(iter(own.kept.values()))) - 1} real weights, read and merged in memory", "dim")
    return {"Kept": text}


def _ending(found: Rehearsal) -> RenderableType:
    if not found.passed:
        why = "its merge was not certified" if found.sound.verdict != "CERTIFIED" else "the planted defect was not caught"
        return Text(f"Not ready: the twin says {why}. Rehearsed in {_span(found.seconds)}.", COLOURS["REJECTED"])
    words = [f"--base={found.real.base}", *(f"--adapter={folder}" for folder in found.real.adapters)]
    words += [f"--weight={weight}" for weight in found.real.weights] + [f"--output-dtype={found.real.options.output_dtype}"]
    words += [f"--rounding={found.real.plan.options.rounding}"]
    command = shlex.join(["python", "-m", "merge", "run", *words, "--out"])
    return Group(Text(f"Rehearsed in {_span(found.seconds)}. Now the real one:", "bold"), Text(f"  {command} DIR"))


def _span(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
