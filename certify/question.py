"""What is asked about one subject: a tensor, a file, a decoder layer, the adapter's accounts, or the gate itself."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from certify.finding import Finding

FILES, ACCOUNTS, LAYERS, LOGITS, SELF_CHECK = "files", "adapter", "layers", "logits", "self-check"  # groups; each shard is one more


@dataclass(frozen=True, slots=True)
class Question:
    """`ask` examines the subject; `group` is the shard, or the kind of thing, that it belongs to: one process answers a whole group."""

    group: str
    subject: str
    ask: Callable[[], list[Finding]]

    def within(self, only: str | None) -> bool:
        """Whether a pattern lets this subject through."""
        return only is None or fnmatchcase(self.subject, only)
