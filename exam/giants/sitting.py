"""One merge of a quantised base, judged."""

from collections.abc import Iterator
from fnmatch import fnmatchcase

import certify
from certify.finding import Outcome
from certify.verdict import Verdict
from exam.giants.bench import Shelf, Way
from exam.giants.folder import Folder, copied
from exam.giants.scene import Fault, Scene
from exam.giants.tools import Tool

TOLD = 160  # characters of what the gate says


def alarm(shelf: Shelf, proxy: str, way: Way | Tool, level: str) -> str:
    """What the gate says against a sound merge; nothing where it certifies it. C8 is left out where rounding to the nearest may lose a
    light fine-tune, and says so rightly."""
    faint = isinstance(way, Way) and way.faint
    merged = shelf.merged(proxy, way) if isinstance(way, Way) else way.made(shelf, proxy)
    least = 0.0 if way.criterion == "nearest" else 0.5
    asked = (shelf.base(proxy), shelf.adapter(proxy, faint=faint), merged)
    found = certify.judge(*asked, output_dtype=way.output, criterion=way.criterion, level=level, min_retention=least)
    return "" if found.verdict is Verdict.CERTIFIED else f"{found.verdict}: {found.reason}"


def planted(shelf: Shelf, fault: Fault) -> Iterator[tuple[str, bool, str]]:
    """(check, whether it refuses the merge at the subject that is named for it, what it says)."""
    base, adapter = shelf.base(fault.proxy), shelf.adapter(fault.proxy, faint=fault.way.faint)
    merged = copied(shelf.merged(fault.proxy, fault.way), shelf.room / "fault")
    fault.plant(Scene(Folder(base), adapter, merged))
    merged.write()
    criterion = fault.criterion or fault.way.criterion
    found = certify.judge(base, adapter, merged.directory, output_dtype=fault.way.output, criterion=criterion, level="weights")
    for check, subject in fault.caught:
        named = [finding for finding in found.findings if finding.code == check and fnmatchcase(finding.subject, subject)]
        failed = [finding for finding in named if finding.outcome is Outcome.FAILED]
        if failed and found.verdict is Verdict.REJECTED:
            yield check, True, failed[0].sentence[:TOLD]
        else:
            yield check, False, f"{found.verdict}: {found.reason}"[:TOLD]
