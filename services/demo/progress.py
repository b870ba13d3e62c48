"""Progress as log lines, where no progress bar can be drawn."""

from __future__ import annotations


class ProgressLines:
    """One line for each tenth of the orders."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._printed = 0

    def line(self, ended: int) -> str | None:
        """The line for this number of ended orders; None until the next tenth is complete."""
        tenth = ended * 10 // self._total
        if tenth <= self._printed:
            return None
        self._printed = tenth
        return f"orders ended: {ended} of {self._total}"
