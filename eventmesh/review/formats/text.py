"""Plain text for people, at 80 columns. Control characters in it are escaped by the caller."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from eventmesh.review.formats.common import change_lines, pretty, remarks, sentence, wrapped
from eventmesh.review.report import Finding, Report


def render(report: Report) -> str:
    """A block for each finding, then the messages and sagas without findings, then the counts."""
    blocks = ["\n".join(_block(finding)) for finding in report.findings]
    blocks += ["\n".join(f"ok       {subject}: as frozen" for subject in report.passed)]
    blocks += [_counts(report)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _block(finding: Finding) -> Iterator[str]:
    problem = finding.problem
    word = "waived" if finding.waived else problem.severity
    yield f"{word:8} {problem.rule} {problem.subject}"
    if problem.place is not None:
        yield f"  {problem.place.file}:{problem.place.line}"
    yield from wrapped(sentence(problem.summary, problem.parties))
    if problem.parties:
        yield from wrapped(f"Services: {', '.join(problem.parties)}")
    if problem.witness is not None:
        yield from wrapped(f"This document fails: {problem.witness.reason}")
        yield textwrap.indent(pretty(problem.witness.document), "    ")
    for change in problem.changes:
        yield from change_lines(change)
    if problem.fix:
        yield from wrapped(f"Fix: {problem.fix}", hanging="       ")
    for remark in remarks(finding):
        yield from wrapped(remark)
    yield f"  fingerprint {problem.fingerprint}"


def _counts(report: Report) -> str:
    counts = [
        (len(report.failures), "error"),
        (len(report.warnings), "warning"),
        (len(report.waived), "waived"),
        (len(report.passed), "as frozen"),
    ]
    return ", ".join(f"{count} {_plural(word, count)}" for count, word in counts)


def _plural(word: str, count: int) -> str:
    return word + "s" if word in ("error", "warning") and count != 1 else word
