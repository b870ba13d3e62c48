"""The table of all faults of a test run, written at its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

from tests.faults.effects import Account


@dataclass(frozen=True)
class Row:
    """The result of one fault, or of several of one kind in one run."""

    fault: str
    broker: str
    database: str
    account: Account
    order_promised: bool
    recovery: float
    """Seconds from the end of the fault to the next new effect."""
    within: float
    """The promised limit of `recovery`."""
    settled: float
    """Seconds from the end of the fault until all messages, including later ones, had taken their
    effects and all queues and outboxes were empty."""
    warnings: int
    """The most warnings of one subscription or relay within one second."""

    def cells(self) -> tuple[str, ...]:
        asked, effects, lost, doubled, in_order = astuple(self.account)
        order = "yes" if in_order else "NO" if self.order_promised else "not promised"
        return (
            self.fault,
            self.broker,
            self.database,
            *map(str, (asked, effects, lost, doubled)),
            order,
            f"{self.recovery:.2f} of {self.within:g}",
            f"{self.settled:.1f}",
            str(self.warnings),
        )


HEAD = (
    "fault",
    "broker",
    "database",
    "messages in",
    "effects (2 each)",
    "lost",
    "doubled",
    "order by key",
    "recovery, s",
    "all settled, s",
    "warnings/s",
)


def table(rows: Sequence[Row], origins: Sequence[str]) -> str:
    """Markdown."""
    lines = ["# Faults", "", *(f"- {origin}" for origin in origins), ""]
    lines += [_line(HEAD), _line(["---"] * len(HEAD)), *(_line(row.cells()) for row in rows)]
    return "\n".join(lines) + "\n"


def write(path: Path, rows: Sequence[Row], origins: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(table(rows, origins))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
