"""What a check has found, as every format prints it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import PurePosixPath

from eventmesh.contracts.problem import Place, Problem
from eventmesh.review.waivers import Waiver


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, and what the project's waivers say of it."""

    problem: Problem
    waiver: Waiver | None = None
    """The waiver that is for this problem, if there is one."""
    expired: bool = False
    """Whether that waiver is past its date, and silences nothing any more."""

    @property
    def waived(self) -> bool:
        """Whether it is silenced."""
        return self.waiver is not None and not self.expired

    @property
    def fails(self) -> bool:
        """Whether the check fails for it."""
        return self.problem.severity == "error" and not self.waived


@dataclass(frozen=True, slots=True)
class Report:
    """The findings, most pressing first, and the subjects that nothing was found of."""

    findings: tuple[Finding, ...]
    passed: tuple[str, ...] = ()
    placed: tuple[Finding, ...] = ()
    """The findings again, with their places as seen from the root of the repository."""

    @property
    def failures(self) -> list[Finding]:
        """What the check fails for."""
        return [finding for finding in self.findings if finding.fails]

    @property
    def warnings(self) -> list[Finding]:
        """What is told and does not fail."""
        return [
            finding
            for finding in self.findings
            if finding.problem.severity == "warning" and not finding.waived
        ]

    @property
    def waived(self) -> list[Finding]:
        """What is silenced."""
        return [finding for finding in self.findings if finding.waived]

    def subjects(self) -> Iterator[tuple[str, list[Finding]]]:
        """Each subject with its findings, by name."""
        found: dict[str, list[Finding]] = {subject: [] for subject in self.passed}
        for finding in self.findings:
            found.setdefault(finding.problem.subject, []).append(finding)
        yield from sorted(found.items())


def judged(problems: Sequence[Problem], waivers: Sequence[Waiver], today: date) -> list[Finding]:
    """Each problem with the waiver that is for it, and what is wrong with the waivers themselves.

    A waiver counts up to and including the day on which it expires.
    """
    whole = {waiver.fingerprint: waiver for waiver in waivers if not waiver.lacks}
    findings = []
    for problem in problems:
        waiver = whole.get(problem.fingerprint)
        expired = waiver is not None and not waiver.counts(today)
        findings.append(Finding(problem, waiver, expired))
    found = {problem.fingerprint for problem in problems}
    for waiver in waivers:
        if waiver.lacks:
            findings.append(Finding(waiver.incomplete()))
        elif waiver.fingerprint not in found:
            findings.append(Finding(waiver.unused()))
    return findings


def report_of(findings: Sequence[Finding], subjects: Sequence[str]) -> Report:
    """The report in an order that depends on nothing but what was found."""
    rank = sorted(
        findings,
        key=lambda finding: (
            finding.waived,
            finding.problem.severity != "error",
            finding.problem.subject,
            finding.problem.rule,
            finding.problem.fingerprint,
        ),
    )
    told = {finding.problem.subject for finding in findings}
    return Report(tuple(rank), tuple(sorted(set(subjects) - told)), tuple(rank))


def rebased(finding: Finding, prefix: str) -> Finding:
    """The finding with its place as seen from the root of the repository, in which the places
    are relative to `prefix`."""
    place = finding.problem.place
    if place is None:
        return finding
    moved = Place(PurePosixPath(prefix, place.file).as_posix(), place.line)
    return replace(finding, problem=replace(finding.problem, place=moved))
