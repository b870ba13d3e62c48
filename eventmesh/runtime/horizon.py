"""How far into the outbox a relay has seen, so that it need not look there again and again: in
PostgreSQL, rows that were deleted stay in the way for as long as any transaction is older."""

from __future__ import annotations

from collections import deque

from eventmesh.persistence.outbox import NOTHING, Seen

LAG = 2.0
"""Seconds for which what was seen is looked at again: a transaction that took its numbers before
another may commit after it."""


class Horizon:
    """What a relay has seen of the outbox. Times are of a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.age = 0
        """How often it was forgotten."""
        self._beyond = NOTHING
        self._marks: deque[tuple[float, Seen]] = deque()

    def forget(self) -> None:
        """Look at everything next: there may be rows to relay anywhere."""
        self.age += 1
        self._beyond = NOTHING
        self._marks.clear()

    def stay(self) -> None:
        """Look again at what was looked at just now: some of it is still there."""
        self._marks.clear()

    def beyond(self, now: float) -> Seen:
        """What the next look may leave out."""
        while self._marks and self._marks[0][0] <= now - LAG:
            self._beyond = self._marks.popleft()[1]
        return self._beyond

    def seen(self, now: float, mark: Seen) -> None:
        """All that could be relayed up to here has been, or was held back."""
        last = self._marks[-1][1] if self._marks else self._beyond
        mark = Seen(max(mark.seq, last.seq), max(mark.due_at, last.due_at))
        if mark != last:
            self._marks.append((now, mark))
