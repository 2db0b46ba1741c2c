"""What a check says: one `Finding` per subject and code, plain data that a certificate can carry."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Figure = float | int | str | bool | None
NOTHING: Mapping[str, "Figure"] = {}  # the figures of most findings, once for all of them


class Outcome(StrEnum):
    """What a check found out about one subject."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_INTERPRETED = "not interpreted"  # the gate does not know this encoding, adapter kind or config field
    UNDECIDED = "undecided"  # the check cannot tell right from wrong here; another one must


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer of one check about one tensor or file.

    code      stable identifier of the check, "C1" … "C10"
    subject   name of the tensor, or of the file relative to its directory
    outcome   passed, failed, not interpreted or undecided
    sentence  what was found, what was expected and the usual cause; empty where the check passed
    figures   numbers that a person can weigh (JSON scalars), e.g. elements beyond the bound, worst element
    """

    code: str
    subject: str
    outcome: Outcome
    sentence: str = ""
    figures: Mapping[str, Figure] = field(default_factory=dict)

    @property
    def data(self) -> dict[str, Any]:
        """JSON data, as `of` takes it; without copies."""
        named = {"code": self.code, "subject": self.subject, "outcome": self.outcome, "sentence": self.sentence}
        return {**named, "figures": self.figures}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Finding":
        """From the `data` of one, read from JSON again."""
        shared = {name: sys.intern(data[name]) for name in ("code", "subject")}  # there are 92,000 tensors, and a few findings of each
        return cls(**{**data, **shared, "outcome": Outcome(data["outcome"]), "figures": data["figures"] or NOTHING})
