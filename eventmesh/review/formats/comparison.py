"""The result of comparing two schemas, as text for people and as a value for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from eventmesh.compat import Breaking, Unknown
from eventmesh.review.formats.common import change_lines, pretty, wrapped
from eventmesh.review.schema_lookup import Comparison


def as_text(comparison: Comparison) -> str:
    """The comparison for people, as a block that ends with a line break."""
    match comparison.verdict:
        case Breaking():
            answer = "no."
        case Unknown(reason=reason):
            answer = f"could be neither proved nor refuted: {reason}."
        case _:
            answer = "yes, proved."
    lines = wrapped(f"{comparison.reader} reads {comparison.writer}: {answer}", first="")
    lines += [f"  {line}" if line else "" for line in _details(comparison)]
    return "\n".join(lines) + "\n"


def as_value(comparison: Comparison) -> dict[str, Any]:
    """The comparison for programs."""
    verdict = comparison.verdict
    value: dict[str, Any] = {
        "writer": comparison.writer,
        "reader": comparison.reader,
        "upcast_from": comparison.upcast_from,
        "verdict": type(verdict).__name__.lower(),
    }
    if isinstance(verdict, Breaking):
        value["witness"] = verdict.witness
    if isinstance(verdict, Breaking | Unknown):
        value["reason"] = verdict.reason
    return value | {"changes": [asdict(change) for change in verdict.changes]}


def _details(comparison: Comparison) -> Iterator[str]:
    verdict = comparison.verdict
    if comparison.upcast_from is not None:
        yield f"The upcasters from version {comparison.upcast_from} were applied."
    elif comparison.ignores_upcasters:
        yield from wrapped(
            "Upcasters are not part of a frozen version, and were not applied. To include them, "
            "compare with the current code: write the message's name without a version.",
            first="",
            hanging="",
        )
    if isinstance(verdict, Breaking):
        yield from wrapped(f"This document fails: {verdict.reason}", first="")
        yield from textwrap.indent(pretty(verdict.witness), "  ").splitlines()
    for change in verdict.changes:
        yield from change_lines(change, first="")
