"""The release gate: proves, module by module, that a merged checkpoint is the base plus the adapter and nothing else.

`certify.judge(base, adapter, merged)` gives a `Certificate`; `lora-certify run` is the same from a command line.
"""

from certify.errors import UsageError
from certify.finding import Finding, Outcome
from certify.judge import judge
from certify.request import Request

__all__ = ["Finding", "Outcome", "Request", "UsageError", "judge"]
