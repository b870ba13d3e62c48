"""SARIF 2.1.0, for code scanning services."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from eventmesh.contracts.rules import RULES
from eventmesh.review.formats.common import dumps, explain
from eventmesh.review.report import Finding, Report

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def render(report: Report) -> str:
    """One run, with a result for each finding and the rules that these refer to."""
    rules = sorted({finding.problem.rule for finding in report.placed})
    run = {
        "tool": {"driver": {"name": "eventmesh", "rules": [_rule(rule) for rule in rules]}},
        "columnKind": "unicodeCodePoints",
        "results": [_result(finding, rules) for finding in report.placed],
    }
    return dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}) + "\n"


def _rule(rule: str) -> dict[str, Any]:
    meaning = RULES.get(rule, "unknown rule")
    sentence = f"{meaning[0].upper()}{meaning[1:]}."
    return {
        "id": rule,
        "shortDescription": {"text": sentence},
        "help": {
            "text": f"{rule}: {sentence} All rules: `eventmesh schema rules`.",
            "markdown": f"**{rule}**: {sentence} All rules: `eventmesh schema rules`.",
        },
    }


def _result(finding: Finding, rules: list[str]) -> dict[str, Any]:
    problem = finding.problem
    result: dict[str, Any] = {
        "ruleId": problem.rule,
        "ruleIndex": rules.index(problem.rule),
        "level": problem.severity,
        "message": {"text": explain(finding)},
        "locations": [_location(finding)],
        "partialFingerprints": {"eventmesh/v1": problem.fingerprint},
        "suppressions": [],
    }
    if finding.waived and finding.waiver:
        result["suppressions"] = [
            {
                "kind": "external",
                "status": "accepted",
                "justification": f"{finding.waiver.reason} (until {finding.waiver.expires})",
            }
        ]
    return result


def _location(finding: Finding) -> dict[str, Any]:
    problem = finding.problem
    location: dict[str, Any] = {"logicalLocations": [{"fullyQualifiedName": problem.subject}]}
    if problem.place is not None:
        location["physicalLocation"] = {
            "artifactLocation": _artifact(problem.place.file),
            "region": {"startLine": max(problem.place.line, 1)},
        }
    return location


def _artifact(file: str) -> dict[str, str]:
    """The file relative to the root of the repository, so that the report can be moved."""
    path = quote(file.encode(errors="replace"))
    if file.startswith("/"):
        return {"uri": f"file://{path}"}
    return {"uri": path, "uriBaseId": "%SRCROOT%"}
