"""JUnit XML for test reports, with one test case for each message or other subject."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as Xml

from eventmesh.review.formats.common import explain
from eventmesh.review.report import Finding, Report

_INVALID_IN_XML = re.compile("[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(report: Report) -> str:
    """A subject with errors is a failed case; one whose errors are all waived is skipped."""
    suite = Xml.Element("testsuite", name="eventmesh schema check")
    suite.extend(_case(subject, findings) for subject, findings in report.subjects())
    counts = {
        "tests": len(suite),
        "failures": len(suite.findall("testcase/failure")),
        "errors": 0,
        "skipped": len(suite.findall("testcase/skipped")),
        "time": 0,
    }
    for name, count in counts.items():
        suite.set(name, str(count))
    suites = Xml.Element("testsuites")
    suites.append(suite)
    Xml.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + Xml.tostring(suites, "unicode") + "\n"


def _case(subject: str, findings: Sequence[Finding]) -> Xml.Element:
    subject = _valid_xml(subject)
    case = Xml.Element(
        "testcase", classname=f"schema.{subject.partition('.')[0]}", name=subject, time="0"
    )
    case.extend(_outcome(findings))
    warnings = [finding for finding in findings if not finding.fails and not finding.waived]
    if warnings:
        Xml.SubElement(case, "system-out").text = _text(warnings)
    return case


def _outcome(findings: Sequence[Finding]) -> Iterator[Xml.Element]:
    """One failure with all errors of the subject, because tools expect at most one in a case."""
    failing = [finding for finding in findings if finding.fails]
    waived = [finding for finding in findings if finding.waived]
    if failing:
        message = "; ".join(f"{f.problem.rule}: {f.problem.summary}" for f in failing)
        failure = Xml.Element("failure", message=_valid_xml(message), type=failing[0].problem.rule)
        failure.text = _text([*failing, *waived])
        yield failure
    elif waived:
        reasons = "; ".join(f"{f.problem.rule}: {f.waiver.reason}" for f in waived if f.waiver)
        skipped = Xml.Element("skipped", message=_valid_xml(f"waived: {reasons}"))
        skipped.text = _text(waived)
        yield skipped


def _text(findings: Sequence[Finding]) -> str:
    return _valid_xml("\n\n".join(f"{f.problem.rule}: {explain(f)}" for f in findings))


def _valid_xml(text: str) -> str:
    return _INVALID_IN_XML.sub("", text)
