"""A verdict of one check about one thing, and what all verdicts together mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

FOUND, AWAY = 1, 3
"""Exit codes for findings, and for something that could not be checked because it is away."""


class Severity(StrEnum):
    """How bad it is. `SKIPPED` was not checked, because it needs a setting or a right that is not
    given; `AWAY` could not be checked, because a server did not answer."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    AWAY = "away"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check says about a subject, such as a subscription; `fix` is what to do, empty if
    there is nothing to do."""

    check: str
    subject: str
    severity: Severity
    says: str
    fix: str = ""


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """3 if something is away, because what could not be checked may be worse than what was found;
    else 1 for warnings and failures, else 0."""
    found = {verdict.severity for verdict in verdicts}
    if Severity.AWAY in found:
        return AWAY
    return FOUND if found & {Severity.WARNING, Severity.FAILURE} else 0


def fine(check: str, subject: str, says: str) -> Verdict:
    return Verdict(check, subject, Severity.OK, says)


def warning(check: str, subject: str, says: str, fix: str) -> Verdict:
    return Verdict(check, subject, Severity.WARNING, says, fix)


def failure(check: str, subject: str, says: str, fix: str = "") -> Verdict:
    """Without a `fix` where what it says ends with one, as our errors do."""
    return Verdict(check, subject, Severity.FAILURE, says, fix)


def away(check: str, subject: str, says: str) -> Verdict:
    return Verdict(check, subject, Severity.AWAY, says)


def skipped(check: str, subject: str, why: str) -> Verdict:
    return Verdict(check, subject, Severity.SKIPPED, why)
