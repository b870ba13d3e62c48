"""A problem that a check found, with what to do about it.

Its fingerprint identifies it across runs, whatever its words are, so that a waiver can refer to it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from eventmesh.compat.verdict import Change

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the user's files; lines count from 1."""

    file: str
    line: int = 1


@dataclass(frozen=True, slots=True)
class Witness:
    """A document that fails, and the reason."""

    document: Any
    reason: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem.

    `subject` is what it is about, such as `payments.payment_captured v2`. `parties` are the
    services that it breaks, or that must act.
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
    """What distinguishes it from other problems of the same rule, subject and parties."""

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stay the same as long as the problem does."""
        parts = [self.rule, self.subject, sorted(self.parties), list(self.marks)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.rule} {self.subject}: {self.summary}"
