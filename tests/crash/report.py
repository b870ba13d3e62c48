"""The table of all kills of a test run, written at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.crash.crash_points import Point

KINDS = {
    "await": "awaits",
    "call": "calls of database and broker",
    "statement": "SQL statements, before and after",
    "broker": "statements of the broker's file",
}
"""The kinds of crash points and their meaning."""


@dataclass(frozen=True)
class Row:
    """Schedules of one kind on one database."""

    database: str
    what: str
    points: Sequence[Point]
    """Where the process was killed."""
    schedules: int
    """How often the process was restarted, run until idle, and checked."""
    kills: int
    """How many processes or workers really died at their points."""


HEAD = ("database", "what", "points", *KINDS, "schedules", "kills")


def table(rows: Sequence[Row]) -> str:
    """Markdown: the rows, and the sum for each database."""
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
    return _line([row.database, row.what, *map(str, (*points, row.schedules, row.kills))])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
