"""The whole report as one JSON object."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from eventmesh.review.formats.common import dumps
from eventmesh.review.report import Finding, Report


def render(report: Report) -> str:
    """The findings, the messages without findings, and the counts."""
    content = {
        "errors": len(report.failures),
        "warnings": len(report.warnings),
        "waived": len(report.waived),
        "problems": [_problem(finding) for finding in report.findings],
        "passed": list(report.passed),
    }
    return dumps(content) + "\n"


def _problem(finding: Finding) -> dict[str, Any]:
    problem, waiver = finding.problem, finding.waiver
    return {
        "rule": problem.rule,
        "severity": problem.severity,
        "subject": problem.subject,
        "summary": problem.summary,
        "fix": problem.fix,
        "parties": list(problem.parties),
        "place": problem.place and asdict(problem.place),
        "witness": problem.witness and asdict(problem.witness),
        "changes": [asdict(change) for change in problem.changes],
        "fingerprint": problem.fingerprint,
        "waived": finding.waived,
        "waiver": waiver
        and {
            "reason": waiver.reason,
            "expires": str(waiver.expires),
            "expired": finding.expired,
        },
    }
