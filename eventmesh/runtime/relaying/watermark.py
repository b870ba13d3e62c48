"""The watermark of a relay: up to where the outbox has been read, so that rounds start after it.

Without one, each round would read from the beginning. PostgreSQL keeps deleted rows in its indexes
for as long as any transaction is older than their deletion, so a round would scan all that was ever
relayed since.

The newest row that a round saw is not a watermark yet. A transaction takes the numbers of its rows
when it inserts them, and may commit after one that took higher numbers. So a round leaves a
checkpoint: the highest number it saw, and the transactions that were writing at that moment. The
checkpoint is settled once none of those goes on, after 2 s at the earliest, because not every
database tells who is writing, and after 30 s at the latest. After 30 s we stop waiting: a
transaction that commits even later may be overtaken by newer messages of its key, and the sweep
finds its rows. Waiting longer would make every round scan dead rows.

Only a round that began after a checkpoint was settled moves the watermark there. That round has
read everything up to the checkpoint once more, with nobody left to add to it; had the watermark
moved at once, rows that were committed since the last round would be overtaken by their own keys.

    time    what happens                                         rounds read   settled at
    10.0    transaction A takes number 7, and goes on
    10.1    transaction B takes number 8, and commits
    10.2    round: relays 8; checkpoint 8, A is writing          seq > 0       open
    10.5    A commits number 7
    10.6    round: relays 7                                      seq > 0       open
    12.3    round: nothing; A is gone, and 2 s are over          seq > 0       12.3
    12.4    round: nothing; it began after 12.3: watermark 8     seq > 0       passed
    12.5    round: reads what is new, and no dead rows           seq > 8

Delayed rows are read in the order in which they become due, with a watermark of its own: a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from eventmesh.persistence.outbox import START, Position

SHORTEST_WAIT = 2.0
"""Seconds for which rows are read again after a checkpoint, at the least."""

LONGEST_WAIT = 30.0
"""Seconds for which a checkpoint waits for the transactions that were writing."""

CHECKPOINT_INTERVAL = 0.25
"""Seconds between two checkpoints."""

_Place = TypeVar("_Place", int, datetime)


@dataclass(frozen=True, slots=True)
class Look:
    """What one reading of the outbox covered.

    It saw all rows up to the number `seq`. With `due_at` it saw all rows there are, due until then;
    without, a batch did not hold them all. `writers` were writing right after it; None if the
    database was not asked.
    """

    began_at: float
    seq: int
    due_at: datetime | None
    writers: Collection[str] | None = None


@dataclass(slots=True)
class _Checkpoint(Generic[_Place]):
    """A place that may become the watermark."""

    place: _Place
    made_at: float
    writers: Collection[str]
    """Who was writing when it was made, and still is."""
    settled_at: float | None = None

    def update(self, now: float, writing: Collection[str]) -> None:
        """Settle it if nobody of its writers is among those who are writing now."""
        self.writers = [each for each in self.writers if each in writing]
        wait = LONGEST_WAIT if self.writers else SHORTEST_WAIT
        if self.settled_at is None and now >= self.made_at + wait:
            self.settled_at = now


@dataclass(slots=True)
class _OrderWatermark(Generic[_Place]):
    """The watermark in one order of the rows: by number, or by due time."""

    place: _Place
    checkpoints: deque[_Checkpoint[_Place]] = field(default_factory=deque)

    def advance(self, began_at: float, through: _Place | None) -> None:
        """Pass the checkpoints that were settled before this look began and that it saw all rows
        up to; None for a look that saw all rows there are."""
        while self.checkpoints and (first := self.checkpoints[0]).settled_at is not None:
            if first.settled_at > began_at or (through is not None and first.place > through):
                return
            self.place = self.checkpoints.popleft().place

    def add_checkpoint(self, now: float, place: _Place, writers: Collection[str]) -> None:
        for each in self.checkpoints:
            each.update(now, writers)
        if place > (self.checkpoints[-1].place if self.checkpoints else self.place):
            self.checkpoints.append(_Checkpoint(place, now, writers))


class Watermark:
    """The watermark of one relay. Times are of a monotonic clock, in seconds."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Read from the beginning next: there may be rows to relay anywhere."""
        self._by_number = _OrderWatermark(START.seq)
        self._by_due_time = _OrderWatermark(START.due_at)
        self._next_checkpoint_at = 0.0

    def drop_checkpoints(self) -> None:
        """Read the rows after the watermark again: some of them are still in the outbox."""
        self._by_number.checkpoints.clear()
        self._by_due_time.checkpoints.clear()

    @property
    def position(self) -> Position:
        """What the next look may leave out."""
        return Position(self._by_number.place, self._by_due_time.place)

    def is_checkpoint_due(self, now: float) -> bool:
        """Whether the next look should ask who is writing, to leave a checkpoint."""
        return now >= self._next_checkpoint_at

    def record(self, look: Look, now: float) -> None:
        """Take in a look of which everything has been relayed, or is held back."""
        all_seen = look.due_at is not None
        self._by_number.advance(look.began_at, None if all_seen else look.seq)
        if all_seen:
            self._by_due_time.advance(look.began_at, None)
        if look.writers is None:
            return
        self._next_checkpoint_at = now + CHECKPOINT_INTERVAL
        self._by_number.add_checkpoint(now, look.seq, look.writers)
        due_at = self._by_due_time.place if look.due_at is None else look.due_at
        self._by_due_time.add_checkpoint(now, due_at, look.writers)
