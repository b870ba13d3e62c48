"""Progress for a log, where no bar can be drawn."""

from __future__ import annotations


class Tenths:
    """A line for every tenth of the orders."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._said = 0

    def line(self, ended: int) -> str | None:
        """What to say once so many have ended; None while the next tenth is not complete."""
        tenth = ended * 10 // self._total
        if tenth <= self._said:
            return None
        self._said = tenth
        return f"orders ended: {ended} of {self._total}"
