"""The hand-over: rows that this process has just committed, which its relay need not read first.

Reading the outbox takes a round trip and a transaction of the database for each lone message. A
process that commits rows knows them already, so where it relays its own outbox, it hands them over
to the relay, in memory. The rows are in the database all the same: what the relay does not publish
from here, for whatever reason, a later round reads.

But a relay that does not read might publish a row before an older one of the same key, which
another process has committed. So it has to know of every older row that it is out of the way. The
numbers of rows tell: a number is closed once its row has been relayed, or is delayed, so that it
holds back nobody, or the watermark has passed it, so that no row with it is expected any more. Rows
are taken from the hand-over only if all numbers below theirs are closed:

    what happens                                       closed        what the relay does
    the watermark is at 8                              up to 8
    this process commits 9 and 10                      up to 8       publishes both, unread
    another process takes 11, this one commits 12      up to 10      reads the outbox: 12
    this process commits 13                            10, and 12    reads the outbox: 13
    the other process commits 11                       10, 12, 13    reads the outbox: 11
    this process commits 14                            up to 13      publishes it, unread

A transaction that is rolled back leaves numbers that nobody uses, and the relay reads the outbox
until the watermark has passed them, some seconds later.

A rejected or parked message blocks its key by more than its number, and rows in the buckets of
other relays close no numbers here. So nothing is taken while there may be rejected messages, and
only by a relay that holds all buckets.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eventmesh.persistence.outbox import OutboxRow, Stored

CAPACITY = 500
"""How many rows wait at the most. If more are committed before the relay has taken them, it is
behind, and reading whole batches is better."""


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Rows to publish, in the order of their numbers, and after how many seconds the next delayed
    row is due, if one was handed over with them."""

    rows: Sequence[OutboxRow]
    next_due_in: float | None


class ClosedNumbers:
    """Numbers of rows that no other row has to wait for: all up to one, and some above it."""

    def __init__(self) -> None:
        self.through = 0
        self._above: set[int] = set()

    def __contains__(self, number: int) -> bool:
        return number <= self.through or number in self._above

    def close(self, numbers: Iterable[int]) -> None:
        """These are out of the way."""
        self._above.update(number for number in numbers if number > self.through)
        while self.through + 1 in self._above:
            self.through += 1
            self._above.remove(self.through)

    def close_through(self, number: int) -> None:
        """All up to this one are out of the way."""
        if number > self.through:
            self.through = number
            self._above = {each for each in self._above if each > number}
            self.close(())

    def is_closed_below(self, numbers: Sequence[int]) -> bool:
        """Whether each number below the highest of these, which are sorted and not closed, is
        closed or one of these."""
        expected = self.through + 1
        for number in numbers:
            while expected in self._above:
                expected += 1
            if number != expected:
                return False
            expected += 1
        return True


class Handover:
    """Takes the rows of this process's commits, and gives its relay those that it may publish."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Have the outbox read until the watermark tells which numbers are closed: others may have
        published, rejected or added rows meanwhile."""
        self._waiting: list[Stored] = []
        self._overflowed = False
        self._closed = ClosedNumbers()
        self.may_have_rejected = True
        """Whether there may be rejected or parked messages in the outbox."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing was handed over since the last `take`."""
        return not self._waiting and not self._overflowed

    @property
    def closed_through(self) -> int:
        """The number up to which all are closed."""
        return self._closed.through

    def put(self, committed: Sequence[Stored]) -> None:
        """Take rows that a transaction of this process has committed."""
        if len(self._waiting) + len(committed) > CAPACITY:
            self._waiting.clear()
            self._overflowed = True
        else:
            self._waiting += committed

    def take(self) -> HandedOver | None:
        """What the relay may publish next; None if it has to read the outbox instead. Either way,
        what was handed over is not given again."""
        waiting, overflowed = self._waiting, self._overflowed
        self._waiting, self._overflowed = [], False
        delayed = [each for each in waiting if each.outgoing.delay]
        self._closed.close(each.seq for each in delayed)
        rows = [
            OutboxRow(each.seq, each.outgoing.envelope, attempts=0)
            for each in sorted(waiting, key=lambda each: each.seq)
            if each.seq not in self._closed  # a round may have read it before it was handed over
        ]
        if overflowed or self.may_have_rejected:
            return None
        if not self._closed.is_closed_below([row.seq for row in rows]):
            return None
        return HandedOver(rows, min((each.outgoing.delay for each in delayed), default=None))

    def close(self, relayed: Iterable[OutboxRow]) -> None:
        """The broker has confirmed these rows."""
        self._closed.close(row.seq for row in relayed)

    def close_through(self, watermark: int) -> None:
        """Up to this number, the outbox need not be read any more."""
        self._closed.close_through(watermark)
