"""Helpers that several formats share: wrapped text, JSON, and the explanation of a finding."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Collection, Iterator
from typing import Any

from eventmesh.compat import Change
from eventmesh.contracts.problem import Problem
from eventmesh.review.report import Finding

_WIDTH = 78
MAX_LINES = 60
"""The most lines of a document that are shown to people; the JSON format has all of it."""


def pretty(document: Any) -> str:
    """The document as JSON for people, shortened if it is long."""
    lines = dumps(document).splitlines()
    if len(lines) > MAX_LINES:
        left = len(lines) - MAX_LINES
        lines = [*lines[:MAX_LINES], f"… and {left} more lines: see --format json"]
    return "\n".join(line if len(line) <= 400 else f"{line[:400]}…" for line in lines)


def dumps(value: Any) -> str:
    """Indented JSON in ASCII. Values that JSON does not have, such as infinity, are strings."""
    return json.dumps(_as_json_value(value), indent=2, default=str)


def remarks(finding: Finding) -> Iterator[str]:
    """Lines about the waiver for the finding, if there is one."""
    waiver = finding.waiver
    if waiver is None:
        return
    if finding.expired:
        yield f"The waiver ({waiver.reason}) expired on {waiver.expires} and has no effect."
    else:
        yield f"Waived until {waiver.expires}: {waiver.reason}"


def wrapped(text: str, *, first: str = "  ", hanging: str = "  ") -> list[str]:
    """The text wrapped to 80 columns; all lines but the first are indented by `hanging`."""
    lines: list[str] = []
    for line in text.splitlines():
        lines += textwrap.wrap(
            line,
            _WIDTH,
            initial_indent=hanging if lines else first,
            subsequent_indent=hanging,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def change_lines(change: Change, *, first: str = "  ") -> Iterator[str]:
    """A change with its place in the schema and its fix."""
    yield from wrapped(f"- {change}", first=first, hanging=first + "  ")
    if change.pointer:
        yield f"{first}  at {change.pointer}"
    if change.fix:
        yield from wrapped(f"fix: {change.fix}", first=first + "  ", hanging=first + "       ")


def sentence(text: str, names: Collection[str] = ()) -> str:
    """The text as a sentence: summaries that follow a subject are not written as one. A text that
    begins with one of these names, or with that of a message, keeps its spelling."""
    text = text.strip()
    first = text.partition(" ")[0].rstrip(",:")
    is_name = first in names or "." in first
    return (text if is_name else text[:1].upper() + text[1:]) + (
        "" if text.endswith((".", "!", "?")) else "."
    )


def explain(finding: Finding) -> str:
    """The whole finding in paragraphs for a person."""
    problem = finding.problem
    parts = [sentence(problem.summary, problem.parties)]
    if problem.parties:
        parts.append(f"Services: {', '.join(problem.parties)}.")
    if problem.witness is not None:
        parts.append(f"This document fails: {problem.witness.reason}")
        parts.append(pretty(problem.witness.document))
    parts += _changes(problem)
    if problem.fix:
        parts.append(f"Fix: {problem.fix}")
    parts += remarks(finding)
    return "\n".join([*parts, f"Fingerprint: {problem.fingerprint}"])


def _changes(problem: Problem) -> Iterator[str]:
    for change in problem.changes:
        at = f" (at {change.pointer})" if change.pointer else ""
        yield f"- {change}{at}"


def _as_json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _as_json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json_value(inner) for inner in value]
    return value
