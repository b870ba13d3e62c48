"""The report of a check: its findings, with the project's waivers applied, in a fixed order.

A *problem* is what a check found. A *finding* is a problem together with the waiver that accepts
it, if there is one. The check fails for errors that are not waived.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import PurePosixPath

from eventmesh.contracts.problem import Place, Problem
from eventmesh.review.waivers import Waiver


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem, and the waiver for it."""

    problem: Problem
    waiver: Waiver | None = None
    expired: bool = False
    """Whether the waiver is past its expiry date, and has no effect any more."""

    @property
    def waived(self) -> bool:
        """Whether a waiver accepts the problem."""
        return self.waiver is not None and not self.expired

    @property
    def fails(self) -> bool:
        """Whether the check fails because of it."""
        return self.problem.severity == "error" and not self.waived


@dataclass(frozen=True, slots=True)
class Report:
    """The findings, most important first, and the subjects without any."""

    findings: tuple[Finding, ...]
    passed: tuple[str, ...] = ()
    placed: tuple[Finding, ...] = ()
    """The same findings, with places relative to the root of the repository."""

    @property
    def failures(self) -> list[Finding]:
        """The findings because of which the check fails."""
        return [finding for finding in self.findings if finding.fails]

    @property
    def warnings(self) -> list[Finding]:
        """The warnings that are not waived."""
        return [
            finding
            for finding in self.findings
            if finding.problem.severity == "warning" and not finding.waived
        ]

    @property
    def waived(self) -> list[Finding]:
        """The findings that are waived."""
        return [finding for finding in self.findings if finding.waived]

    def subjects(self) -> Iterator[tuple[str, list[Finding]]]:
        """Each subject with its findings, sorted by name."""
        found: dict[str, list[Finding]] = {subject: [] for subject in self.passed}
        for finding in self.findings:
            found.setdefault(finding.problem.subject, []).append(finding)
        yield from sorted(found.items())


def apply_waivers(
    problems: Sequence[Problem], waivers: Sequence[Waiver], today: date
) -> list[Finding]:
    """Match problems with waivers, and add findings about incomplete and unused waivers.

    A waiver has effect up to and including the day on which it expires.
    """
    complete = {waiver.fingerprint: waiver for waiver in waivers if not waiver.missing}
    findings = []
    for problem in problems:
        waiver = complete.get(problem.fingerprint)
        expired = waiver is not None and not waiver.is_active(today)
        findings.append(Finding(problem, waiver, expired))
    found = {problem.fingerprint for problem in problems}
    for waiver in waivers:
        if waiver.missing:
            findings.append(Finding(waiver.incomplete()))
        elif waiver.fingerprint not in found:
            findings.append(Finding(waiver.unused()))
    return findings


def make_report(findings: Sequence[Finding], subjects: Sequence[str]) -> Report:
    """The report of these findings; subjects without a finding passed.

    The order depends on nothing but the findings, so that reports can be compared.
    """
    ranked = sorted(
        findings,
        key=lambda finding: (
            finding.waived,
            finding.problem.severity != "error",
            finding.problem.subject,
            finding.problem.rule,
            finding.problem.fingerprint,
        ),
    )
    failed = {finding.problem.subject for finding in findings}
    return Report(tuple(ranked), tuple(sorted(set(subjects) - failed)), tuple(ranked))


def rebase(finding: Finding, prefix: str) -> Finding:
    """The finding with its place, which is relative to `prefix`, relative to the repository."""
    place = finding.problem.place
    if place is None:
        return finding
    moved = Place(PurePosixPath(prefix, place.file).as_posix(), place.line)
    return replace(finding, problem=replace(finding.problem, place=moved))
