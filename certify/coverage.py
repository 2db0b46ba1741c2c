"""What every tensor is owed, whatever was found: nobody is certified by a finding that is not there."""

from collections.abc import Iterable, Sequence

from certify.checks import c2_completeness, c3_untouched, c4_merged
from certify.finding import Finding, Outcome


def unjudged(tensors: Iterable[str], findings: Sequence[Finding]) -> list[Finding]:
    """Tensors of (base index ∪ merged) without C2, or of which C2 passed and neither C3 nor C4 says whether the values are right."""
    named = {finding.subject for finding in findings if finding.code == c2_completeness.CODE}
    found = [finding for finding in findings if finding.code == c2_completeness.CODE and finding.outcome is Outcome.PASSED]
    comparable = {finding.subject for finding in found if not finding.figures.get("gone")}
    weighed = {finding.subject for finding in findings if finding.code in (c3_untouched.CODE, c4_merged.CODE)}
    return [
        Finding(c2_completeness.CODE, name, Outcome.NOT_INTERPRETED, "no check has judged this tensor")
        for name in tensors
        if name not in named or (name in comparable and name not in weighed)
    ]
