"""The queue of one subscription to a memory broker: what waits, what is in flight, what is dead."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from eventmesh.transports.base import DeadLetter, Order
from eventmesh.wire.envelope import Envelope


@dataclass(slots=True)
class QueuedMessage:
    """One subscription's copy of a message."""

    envelope: Envelope
    visible_at: float
    sequence: int
    attempt: int = 1
    deliveries: int = 0

    def __lt__(self, other: QueuedMessage) -> bool:
        return (self.visible_at, self.sequence) < (other.visible_at, other.sequence)


@dataclass(slots=True)
class MemoryQueue:
    """The messages of one subscription, by state.

    With an order, what waits in a key is never visible before what comes before it. So to hold a
    key back is to make it visible later.
    """

    order: Order | None = None
    waiting: list[QueuedMessage] = field(default_factory=list)
    in_flight: dict[int, QueuedMessage] = field(default_factory=dict)
    dead: dict[str, DeadLetter] = field(default_factory=dict)
    died: dict[str, QueuedMessage] = field(default_factory=dict)
    """What became the dead letter with this id."""
    holders: set[str] = field(default_factory=set)
    """The dead letters that hold their keys."""
    waiters: set[asyncio.Future[None]] = field(default_factory=set)

    def set_order(self, order: Order | None, now: float) -> None:
        """Have this order from now on. If dead letters hold no keys then, those are released."""
        self.order = order
        if order is None or order.after_dead != "hold":
            self._release(self.holders, now)

    def put_last(self, queued: QueuedMessage) -> None:
        """Let a new message wait behind all others of its key."""
        if self.order is not None:
            key = queued.envelope.key
            until = math.inf if self.is_held(key) else queued.visible_at
            queued.visible_at = max([until, *(each.visible_at for each in self._of_key(key))])
        self.put(queued)

    def put_again(self, queued: QueuedMessage) -> None:
        """Let it wait, with an order in its old place among those of its key."""
        if self.order is not None:
            key, place = queued.envelope.key, queued.sequence
            others = {each.sequence: each.visible_at for each in self._of_key(key)}
            earlier = [at for each, at in others.items() if each < place and at < math.inf]
            queued.visible_at = max(earlier, default=min([queued.visible_at, *others.values()]))
        self.put(queued)

    def put(self, queued: QueuedMessage) -> None:
        """Let it wait in its place."""
        heapq.heappush(self.waiting, queued)
        self.wake()

    def take(self, limit: int, now: float) -> list[QueuedMessage]:
        """The next messages that are visible now, and from now on in flight."""
        busy = {each.envelope.key for each in self.in_flight.values()} if self.order else set()
        taken: list[QueuedMessage] = []
        passed: list[QueuedMessage] = []
        while len(taken) < limit and self.waiting and self.waiting[0].visible_at <= now:
            queued = heapq.heappop(self.waiting)
            (passed if queued.envelope.key in busy else taken).append(queued)
        for queued in passed:
            heapq.heappush(self.waiting, queued)
        for queued in taken:
            queued.deliveries += 1
            self.in_flight[queued.sequence] = queued
        return taken

    def next_at(self, now: float) -> float | None:
        """When the next message that is not visible now will be; None if that needs a settlement or
        a new message."""
        times = [each.visible_at for each in self.waiting if now < each.visible_at < math.inf]
        return min(times, default=None)

    def take_back(self, failed: QueuedMessage) -> Collection[int]:
        """Let what was received of this key after the failed message wait again; returns the
        sequence numbers."""
        taken_back = [
            queued
            for queued in self.in_flight.values()
            if queued.envelope.key == failed.envelope.key and queued.sequence > failed.sequence
        ]
        for queued in taken_back:
            del self.in_flight[queued.sequence]
            queued.deliveries -= 1
            self.put(queued)
        return {queued.sequence for queued in taken_back}

    def postpone(self, first: QueuedMessage, until: float) -> None:
        """Make what waits behind this message of its key visible no earlier than at this time."""
        for queued in self._of_key(first.envelope.key):
            if queued.sequence > first.sequence:
                queued.visible_at = max(queued.visible_at, until)
        heapq.heapify(self.waiting)

    def bury(self, letter: DeadLetter, queued: QueuedMessage) -> None:
        """Keep a dead letter of this message, which may hold its key."""
        self.dead[letter.id] = letter
        self.died[letter.id] = queued
        if self.order is not None and self.order.after_dead == "hold":
            self.holders.add(letter.id)
            self.postpone(queued, math.inf)

    def forget_dead(self, letter_ids: Collection[str], now: float) -> None:
        """Delete these dead letters, and release the keys that none of the others holds."""
        self._release(letter_ids, now)
        for letter_id in letter_ids:
            del self.dead[letter_id], self.died[letter_id]
        self.wake()

    def _release(self, letter_ids: Collection[str], now: float) -> None:
        """Let these dead letters hold nothing any more."""
        released = self.holders & set(letter_ids)
        self.holders -= released
        for key in {self.died[each].envelope.key for each in released}:
            if not self.is_held(key):
                self._make_visible(key, now)

    def _make_visible(self, key: str | None, now: float) -> None:
        """Let what a dead letter held follow what waits in its key for another reason, or come."""
        times = [each.visible_at for each in self._of_key(key) if each.visible_at < math.inf]
        at = max([now, *times])
        for queued in self._of_key(key):
            queued.visible_at = min(queued.visible_at, at)
        heapq.heapify(self.waiting)

    def is_held(self, key: str | None) -> bool:
        """Whether a dead letter holds this key."""
        return any(self.died[each].envelope.key == key for each in self.holders)

    def count_held(self, now: float) -> int:
        """How many wait behind an earlier message of their key."""
        if self.order is None:
            return 0
        delayed = Counter(each.envelope.key for each in self.waiting if each.visible_at > now)
        return sum(number - (not self.is_held(key)) for key, number in delayed.items())

    def _of_key(self, key: str | None) -> Iterator[QueuedMessage]:
        return (queued for queued in self.waiting if queued.envelope.key == key)

    def wake(self) -> None:
        """Make every waiting consumer look at the queue again."""
        while self.waiters:
            waiter = self.waiters.pop()
            if not waiter.done():
                waiter.set_result(None)
