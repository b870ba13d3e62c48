"""How far into the outbox a relay has seen, so that it need not look there again and again: in
PostgreSQL, rows that were deleted stay in the way for as long as any transaction is older.

A transaction that took its number before another may commit after it. So what was seen is looked at
again until that can no longer be, and the relay moves on only with a look that began after that:
else what came late would be overtaken by its own key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from eventmesh.persistence.outbox import START, Position

LAG = 2.0
"""Seconds for which what was seen is looked at again, at the least."""

PATIENCE = 30.0
"""Seconds for which it is looked at again, at the most, for a transaction that goes on: rather may
what that commits in the end be overtaken than all rows be in the way."""

STEP = 0.25
"""Seconds between two marks."""

_Place = TypeVar("_Place", int, datetime)


@dataclass(slots=True)
class _Mark(Generic[_Place]):
    """How far was seen at a time, and who was writing then and is still."""

    at: float
    place: _Place
    writers: Collection[str]
    ripe_at: float | None = None
    """Since when there is nobody left who was writing then."""

    def notice(self, now: float, writing: Collection[str]) -> None:
        """These are writing now."""
        self.writers = [each for each in self.writers if each in writing]
        if self.ripe_at is None and now >= self.at + (PATIENCE if self.writers else LAG):
            self.ripe_at = now


@dataclass(slots=True)
class _Edge(Generic[_Place]):
    """How far was seen in one order: by number, or by due time."""

    beyond: _Place
    marks: deque[_Mark[_Place]] = field(default_factory=deque)

    def move(self, began_at: float, through: _Place | None) -> None:
        """Move on with a look that began then and saw so far, or everything that there is."""
        while self.marks and (first := self.marks[0]).ripe_at is not None:
            if first.ripe_at > began_at or (through is not None and first.place > through):
                return
            self.beyond = self.marks.popleft().place

    def mark(self, now: float, place: _Place, writers: Collection[str]) -> None:
        """So far was seen; these were writing after that."""
        for each in self.marks:
            each.notice(now, writers)
        if place > (self.marks[-1].place if self.marks else self.beyond):
            self.marks.append(_Mark(now, place, writers))


class Horizon:
    """What a relay has seen of the outbox. Times are of a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Look at everything next: there may be rows to relay anywhere."""
        self._numbers = _Edge(START.seq)
        self._due = _Edge(START.due_at)
        self._next_mark = 0.0

    def stay(self) -> None:
        """Look again at what was looked at just now: some of it is still there."""
        self._numbers.marks.clear()
        self._due.marks.clear()

    @property
    def beyond(self) -> Position:
        """What the next look may leave out."""
        return Position(self._numbers.beyond, self._due.beyond)

    def wants_mark(self, now: float) -> bool:
        """Whether it is time for a mark, for which one must know who is writing after the look."""
        return now >= self._next_mark

    def seen(self, began_at: float, seq: int, due_at: datetime | None) -> None:
        """A look that began then saw all up to this number, and all of it was relayed or held back;
        or all that there is, up to `due_at`."""
        self._numbers.move(began_at, seq if due_at is None else None)
        if due_at is not None:
            self._due.move(began_at, None)

    def mark(self, now: float, seq: int, due_at: datetime | None, writers: Collection[str]) -> None:
        """The same look, marked to be moved on to later; these were writing after it."""
        self._next_mark = now + STEP
        self._numbers.mark(now, seq, writers)
        self._due.mark(now, self._due.beyond if due_at is None else due_at, writers)
