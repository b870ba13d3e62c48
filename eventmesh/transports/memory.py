"""A broker inside one process: deterministic, for tests, simulation and single-process trials.

Its time is the clock's, so a test that owns the clock owns every delay. It ends with the process.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from eventmesh.clock import Clock
from eventmesh.transports.base import (
    DeadLetter,
    Delivery,
    Subscription,
    SubscriptionStats,
)
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter
from eventmesh.wire.envelope import Envelope


@dataclass(slots=True)
class _Parcel:
    """One subscription's copy of a message."""

    envelope: Envelope
    visible_at: float
    sequence: int
    attempt: int = 1
    deliveries: int = 0

    def __lt__(self, other: _Parcel) -> bool:
        return (self.visible_at, self.sequence) < (other.visible_at, other.sequence)


@dataclass(slots=True)
class _Queue:
    """What one subscription holds."""

    waiting: list[_Parcel] = field(default_factory=list)
    in_flight: dict[int, _Parcel] = field(default_factory=dict)
    dead: dict[str, DeadLetter] = field(default_factory=dict)
    waiters: set[asyncio.Future[None]] = field(default_factory=set)

    def put(self, parcel: _Parcel) -> None:
        heapq.heappush(self.waiting, parcel)
        self.wake()

    def wake(self) -> None:
        """Let every waiting consumer look again."""
        while self.waiters:
            waiter = self.waiters.pop()
            if not waiter.done():
                waiter.set_result(None)


class MemoryTransport:
    """All queues are held here; every consumer of the process must be given this same object."""

    atomic_batches = True

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queues: dict[str, _Queue] = {}
        self._bindings: dict[str, set[str]] = defaultdict(set)
        self._unrouted: list[Envelope] = []
        self._sequence = itertools.count()

    async def connect(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Nothing to close: what is held stays, so that a test can go on with it."""

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        for subscription in subscriptions:
            self._queues.setdefault(subscription.name, _Queue())
            for message in subscription.messages:
                self._bindings[message].add(subscription.name)
        kept, self._unrouted = self._unrouted, []
        await self.publish(kept)

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        now = self._clock.monotonic()
        for envelope in envelopes:
            names = self._bindings.get(envelope.name)
            if not names:
                self._unrouted.append(envelope)
                continue
            for name in sorted(names):
                self._queues[name].put(_Parcel(envelope, now, next(self._sequence)))

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[_MemoryConsumer]:
        await self.declare([subscription])
        consumer = _MemoryConsumer(
            self._queues[subscription.name], subscription.name, prefetch, self._clock
        )
        try:
            yield consumer
        finally:
            consumer.give_back()

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        queue = self._queues.get(subscription.name, _Queue())
        now = self._clock.monotonic()
        ready = [parcel for parcel in queue.waiting if parcel.visible_at <= now]
        return SubscriptionStats(
            ready=len(ready),
            delayed=len(queue.waiting) - len(ready),
            in_flight=len(queue.in_flight),
            dead=len(queue.dead),
            oldest_age=max((now - parcel.visible_at for parcel in ready), default=None),
        )

    async def dead_letters(self, subscription: Subscription, *, limit: int) -> Sequence[DeadLetter]:
        queue = self._queues.get(subscription.name, _Queue())
        return list(itertools.islice(queue.dead.values(), limit))

    async def replay(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        queue = self._queues.get(subscription.name, _Queue())
        found = [letter_id for letter_id in dict.fromkeys(ids) if letter_id in queue.dead]
        for letter_id in found:
            envelope = queue.dead.pop(letter_id).envelope
            queue.put(_Parcel(envelope, self._clock.monotonic(), next(self._sequence)))
        return found

    async def discard(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        queue = self._queues.get(subscription.name, _Queue())
        return [letter_id for letter_id in ids if queue.dead.pop(letter_id, None) is not None]


class _MemoryConsumer:
    def __init__(self, queue: _Queue, subscription: str, prefetch: int, clock: Clock) -> None:
        self._queue = queue
        self._subscription = subscription
        self._prefetch = prefetch
        self._clock = clock
        self._held: dict[int, _Parcel] = {}

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while not (taken := self._take(min(limit, self._prefetch - len(self._held)))):
            await self._wait()
        return taken

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        for delivery, outcome in settlements:
            parcel = self._held.pop(delivery.token, None)
            if parcel is None:
                continue
            del self._queue.in_flight[parcel.sequence]
            match outcome:
                case Done():
                    pass
                case RetryAfter(delay):
                    parcel.visible_at = self._clock.monotonic() + delay
                    parcel.attempt += 1
                    parcel.deliveries = 0
                    self._queue.put(parcel)
                case Dead(reason, error):
                    self._bury(parcel, reason, error)
        self._queue.wake()

    def give_back(self) -> None:
        """Make what is unsettled visible to other consumers."""
        for sequence, parcel in self._held.items():
            del self._queue.in_flight[sequence]
            self._queue.put(parcel)
        self._held.clear()

    def _take(self, limit: int) -> list[Delivery]:
        now = self._clock.monotonic()
        taken: list[Delivery] = []
        waiting = self._queue.waiting
        while len(taken) < limit and waiting and waiting[0].visible_at <= now:
            parcel = heapq.heappop(waiting)
            parcel.deliveries += 1
            self._held[parcel.sequence] = self._queue.in_flight[parcel.sequence] = parcel
            taken.append(
                Delivery(parcel.envelope, parcel.attempt, parcel.deliveries, parcel.sequence)
            )
        return taken

    async def _wait(self) -> None:
        """Return when the queue changed or its first delay is over."""
        changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.waiters.add(changed)
        waits: list[asyncio.Future[None]] = [changed]
        if self._queue.waiting and len(self._held) < self._prefetch:
            delay = self._queue.waiting[0].visible_at - self._clock.monotonic()
            waits.append(asyncio.ensure_future(self._clock.sleep(max(delay, 0.0))))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._queue.waiters.discard(changed)
            for wait in waits:
                wait.cancel()

    def _bury(self, parcel: _Parcel, reason: str, error: str) -> None:
        letter = DeadLetter(
            id=self._clock.new_id(),
            subscription=self._subscription,
            envelope=parcel.envelope,
            reason=reason,
            error=error,
            attempts=parcel.attempt,
            died_at=self._clock.now(),
        )
        self._queue.dead[letter.id] = letter
