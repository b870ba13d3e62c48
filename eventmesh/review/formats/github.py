"""Workflow commands of GitHub Actions, which shows them beside the lines of a pull request."""

from __future__ import annotations

from eventmesh.review.formats.common import explain
from eventmesh.review.report import Finding, Report


def render(report: Report) -> str:
    """One command for each finding; waived findings are notices."""
    return "".join(_command(finding) + "\n" for finding in report.placed)


def _command(finding: Finding) -> str:
    problem = finding.problem
    level = "notice" if finding.waived else problem.severity
    properties = {"title": f"{problem.rule} {problem.subject}"}
    if problem.place is not None:
        properties = {"file": problem.place.file, "line": str(problem.place.line)} | properties
    options = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {options}::{_escaped(explain(finding))}"


def _escaped(text: str) -> str:
    """The text without line breaks, which would end the command or start another one."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return "".join(char if char.isprintable() else " " for char in text)


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
