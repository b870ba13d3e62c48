"""For GitHub Actions: workflow commands, which it shows beside the lines of a pull request."""

from __future__ import annotations

from eventmesh.review.formats.common import explained
from eventmesh.review.report import Finding, Report


def render(report: Report) -> str:
    """One command for each finding; a waived one is a notice."""
    return "".join(_command(finding) + "\n" for finding in report.placed)


def _command(finding: Finding) -> str:
    problem = finding.problem
    level = "notice" if finding.waived else problem.severity
    properties = {"title": f"{problem.rule} {problem.subject}"}
    if problem.place is not None:
        properties = {"file": problem.place.file, "line": str(problem.place.line)} | properties
    told = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::{level} {told}::{_escaped(explained(finding))}"


def _escaped(text: str) -> str:
    """Without line breaks, of which each would begin another command or end this one."""
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return "".join(char if char.isprintable() else " " for char in text)


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")
