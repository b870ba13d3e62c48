"""The table of all that a run has stopped, written at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.crash.points import Point
from tests.crash.shop import NUMBERS, SUBSCRIPTIONS

KINDS = {
    "await": "awaits",
    "call": "calls of database and broker",
    "statement": "SQL statements, before and after",
    "broker": "statements of the broker's file",
}
"""Of crash points, and what they are."""


@dataclass(frozen=True)
class Row:
    """A set of schedules on one database."""

    database: str
    what: str
    points: Sequence[Point]
    """Where the process was stopped."""
    schedules: int
    """How often it was started again until all was quiet, and everything checked."""
    kills: int
    """How many processes, or workers, really ended at their points."""


HEAD = ("database", "what", "points", *KINDS, "schedules", "kills", "messages")
MESSAGES = len(NUMBERS) * sum(map(len, SUBSCRIPTIONS.values()))
"""Messages that are handled in each schedule; the effect of each is checked."""


def table(rows: Sequence[Row]) -> str:
    """Markdown: the rows, and the sum of those of each database."""
    lines = ["# Crash points", ""]
    lines += [_line(HEAD), _line(["---"] * len(HEAD))]
    for database in dict.fromkeys(row.database for row in rows):
        mine = [row for row in rows if row.database == database]
        total = Row(
            database,
            "all",
            [point for row in mine for point in row.points],
            sum(row.schedules for row in mine),
            sum(row.kills for row in mine),
        )
        lines += [_row(row) for row in [*mine, total]]
    lines += ["", *(f"- {kind}: {meaning}" for kind, meaning in KINDS.items())]
    return "\n".join(lines) + "\n"


def write(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table(rows))


def _row(row: Row) -> str:
    kinds = Counter(kind for kind, _, _ in row.points)
    points = (len(row.points), *(kinds[kind] for kind in KINDS))
    schedules = (row.schedules, row.kills, row.schedules * MESSAGES)
    return _line([row.database, row.what, *map(str, (*points, *schedules))])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
