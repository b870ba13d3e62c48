"""What the formats say alike."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator
from typing import Any

from eventmesh.compat import Change
from eventmesh.contracts.problem import Problem
from eventmesh.review.report import Finding

_WIDTH = 78
MAX_LINES = 60
"""How much of a witness is shown to people; the JSON format has all of it."""


def pretty(document: Any) -> str:
    """The document as JSON for people, in as many lines as one can still read."""
    lines = dumps(document).splitlines()
    if len(lines) > MAX_LINES:
        left = len(lines) - MAX_LINES
        lines = [*lines[:MAX_LINES], f"… and {left} further lines: see --format json"]
    return "\n".join(line if len(line) <= 400 else f"{line[:400]}…" for line in lines)


def dumps(value: Any) -> str:
    """Indented JSON, in ASCII; what JSON cannot say, such as infinity, as text."""
    return json.dumps(_sayable(value), indent=2, default=str)


def remarks(finding: Finding) -> Iterator[str]:
    """What the project's waivers say of the finding."""
    waiver = finding.waiver
    if waiver is None:
        return
    if finding.expired:
        yield f"The waiver ({waiver.reason}) expired on {waiver.expires}: it silences nothing."
    else:
        yield f"Waived until {waiver.expires}: {waiver.reason}"


def wrapped(text: str, *, first: str = "  ", hanging: str = "  ") -> list[str]:
    """The text in lines for 80 columns, of which all but the first begin with `hanging`."""
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
    """A change with its place and its fix."""
    yield from wrapped(f"- {change}", first=first, hanging=first + "  ")
    if change.pointer:
        yield f"{first}  at {change.pointer}"
    if change.fix:
        yield from wrapped(f"fix: {change.fix}", first=first + "  ", hanging=first + "       ")


def sentence(text: str) -> str:
    """The text as a sentence, which it need not be where it follows a subject."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def explained(finding: Finding) -> str:
    """Everything there is to say of a finding, in paragraphs for a person."""
    problem = finding.problem
    parts = [sentence(problem.summary)]
    if problem.parties:
        parts.append(f"Concerned: {', '.join(problem.parties)}.")
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


def _sayable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _sayable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_sayable(inner) for inner in value]
    return value
