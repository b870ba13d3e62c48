"""The three verdicts on a writer's schema and a reader's: proved, refuted, or neither."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Change:
    """One place where the reader asks for something else than the writer promises.

    A change explains; it does not decide. Whether documents break is said by the verdict.
    """

    rule: str
    """The code of the rule, `EM0xx`; `eventmesh.contracts.rules` says what it stands for."""
    pointer: str
    """The JSON pointer of the place in the reader's schema, or in the writer's if it is gone."""
    field: str
    """The same place in the model's own words, such as `lines[].amount`; empty for the whole."""
    detail: str
    """What the writer says there and what the reader says."""
    fix: str
    """What to do about it."""

    def __str__(self) -> str:
        return f"{self.rule} {self.field or 'the message'}: {self.detail}"


@dataclass(frozen=True, slots=True)
class Compatible:
    """Proved: the reader accepts every document that the writer can write."""

    changes: tuple[Change, ...] = ()
    """What differs, without breaking anything."""


@dataclass(frozen=True, slots=True)
class Breaking:
    """Refuted: the witness is a document that the writer can write and the reader refuses."""

    witness: Any
    """The smallest such document that was found; validated against both."""
    changes: tuple[Change, ...] = ()
    """Where the two differ, the likeliest cause first."""
    reason: str = ""
    """What the reader says of the witness, in one line."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Neither proved nor refuted: to be treated as breaking, or waived by a person."""

    reason: str
    changes: tuple[Change, ...] = ()


Verdict = Compatible | Breaking | Unknown
