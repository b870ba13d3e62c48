"""What a check has to say: one finding, for a person to act on and for a machine to compare."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from eventmesh.compat.verdict import Change

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the user's files something is written; lines count from 1."""

    file: str
    line: int = 1


@dataclass(frozen=True, slots=True)
class Witness:
    """A document that fails, and what refused it."""

    document: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding of a check.

    `subject` is what it is about, such as `payments.payment_captured v2`; `parties` are the
    services that break or must act.
    """

    rule: str
    severity: Severity
    subject: str
    summary: str
    fix: str
    parties: tuple[str, ...] = ()
    place: Place | None = None
    witness: Witness | None = None
    changes: tuple[Change, ...] = ()
    marks: tuple[str, ...] = field(default=(), kw_only=True)
    """What else tells this finding from others of the same rule, subject and parties."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits that stay the same while the finding does, whatever its words are."""
        parts = [self.rule, self.subject, sorted(self.parties), list(self.marks)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.rule} {self.subject}: {self.summary}"
