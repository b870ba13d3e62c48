"""Verdicts on what one side writes and another reads."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from eventmesh.compat import Breaking, Change, Unknown, Verdict
from eventmesh.review.formats.common import change_lines, pretty, wrapped


def as_text(writer: str, reader: str, verdict: Verdict) -> str:
    """The verdict for people, as a block that ends with a line break."""
    lines = wrapped(f"{reader} reads what {writer} writes: {_word(verdict)}", first="")
    lines += [f"  {line}" if line else "" for line in _told(verdict)]
    return "\n".join(lines) + "\n"


def as_value(writer: str, reader: str, verdict: Verdict) -> dict[str, Any]:
    """The verdict for programs."""
    told: dict[str, Any] = {"writer": writer, "reader": reader}
    told["verdict"] = type(verdict).__name__.lower()
    if isinstance(verdict, Breaking):
        told["witness"] = verdict.witness
    if isinstance(verdict, Breaking | Unknown):
        told["reason"] = verdict.reason
    return told | {"changes": [asdict(change) for change in verdict.changes]}


def _word(verdict: Verdict) -> str:
    match verdict:
        case Breaking():
            return "no."
        case Unknown(reason=reason):
            return f"not known: {reason}."
        case _:
            return "yes, that is proved."


def _told(verdict: Verdict) -> Iterator[str]:
    if isinstance(verdict, Breaking):
        yield from wrapped(f"This document fails: {verdict.reason}", first="")
        yield from textwrap.indent(pretty(verdict.witness), "  ").splitlines()
    yield from _changes(verdict.changes)


def _changes(changes: Sequence[Change]) -> Iterator[str]:
    for change in changes:
        yield from change_lines(change, first="")
