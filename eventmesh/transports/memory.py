"""A broker in the memory of one process, for tests, simulation and trying things out.

It is deterministic, and tells the time by its `Clock` only, so that a test which owns the clock
controls every delay. `MemoryBroker` holds the messages; each `MemoryTransport` is a connection to
it. Like a real broker, it can be stopped, lose connections and lose its data.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.tracing.place import Peer
from eventmesh.transports.base import (
    ALL_CONFIRMED,
    Consumer,
    DeadLetter,
    Delivery,
    PublishResult,
    Subscription,
    SubscriptionStats,
    Unrouted,
)
from eventmesh.transports.census import Census, State
from eventmesh.transports.dead_letters import UniqueDeadLetters, fingerprint, group_copies
from eventmesh.transports.facts import BrokerFacts, KnownSubscription
from eventmesh.transports.finding import Found, Located, matches
from eventmesh.transports.memory_queue import MemoryQueue, QueuedMessage
from eventmesh.transports.outcome import Dead, Done, Outcome, RetryAfter
from eventmesh.wire.envelope import Envelope


class MemoryBroker:
    """The queues, and the consumers connected to them."""

    def __init__(self) -> None:
        self.running = True
        self.queues: dict[str, MemoryQueue] = {}
        self.bindings: dict[str, set[str]] = defaultdict(set)
        self.unrouted: list[QueuedMessage] = []
        self.consumers: set[_MemoryConsumer] = set()
        self.sequence = itertools.count()

    def stop(self) -> None:
        """Refuse all calls and cut all connections until `start`. Messages stay."""
        self.running = False
        self.cut()

    def start(self) -> None:
        """Accept calls again."""
        self.running = True

    def cut(self) -> None:
        """Cut every consumer's connection; they can reconnect at once."""
        for consumer in list(self.consumers):
            consumer.lose()

    def lose_data(self) -> None:
        """Delete all messages and subscriptions, as if the broker lost its disk."""
        self.cut()
        self.queues.clear()
        self.bindings.clear()
        self.unrouted.clear()


class MemoryTransport:
    """A connection to the given broker, or to a new one of its own. Services in one process that
    exchange messages share a broker, through one transport or through several."""

    atomic_batches = True
    exact_deliveries = True
    keeps_order = True
    dead_letters_by_itself = False

    def __init__(self, clock: Clock, broker: MemoryBroker | None = None) -> None:
        self.broker = MemoryBroker() if broker is None else broker
        self._clock = clock
        self._closed = False
        self._consumers: set[_MemoryConsumer] = set()

    def peer(self, *, publishing: bool) -> Peer | None:
        return None

    async def connect(self) -> None:
        self._closed = False
        self._reach()

    async def close(self) -> None:
        """Close this connection and its consumers. The broker keeps its messages."""
        self._closed = True
        for consumer in list(self._consumers):
            consumer.lose()

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        broker = self._reach()
        for subscription in subscriptions:
            queue = broker.queues.setdefault(subscription.name, MemoryQueue())
            queue.set_order(subscription.order, self._clock.monotonic())
            for message in subscription.messages:
                broker.bindings[message].add(subscription.name)
        kept, broker.unrouted = broker.unrouted, []
        routed: list[QueuedMessage] = []
        for queued in kept:
            taken = broker.bindings.get(queued.envelope.name)
            (routed if taken else broker.unrouted).append(queued)
        self._route(broker, [queued.envelope for queued in routed])

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        try:
            broker = self._reach()
        except Unreachable as error:
            return PublishResult.interrupted(envelopes, error)
        self._route(broker, envelopes)
        return ALL_CONFIRMED

    def _route(self, broker: MemoryBroker, envelopes: Sequence[Envelope]) -> None:
        now = self._clock.monotonic()
        for envelope in envelopes:
            names = broker.bindings.get(envelope.name)
            if not names:
                broker.unrouted.append(QueuedMessage(envelope, now, next(broker.sequence)))
                continue
            for name in sorted(names):
                broker.queues[name].put_last(QueuedMessage(envelope, now, next(broker.sequence)))

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[Consumer]:
        await self.declare([subscription])
        consumer = _MemoryConsumer(
            self._queue(subscription), subscription.name, prefetch, self._clock
        )
        registers = (self._consumers, self.broker.consumers)
        for register in registers:
            register.add(consumer)
        try:
            yield consumer
        finally:
            for register in registers:
                register.discard(consumer)
            consumer.return_unsettled()

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        queue = self._queue(subscription)
        now = self._clock.monotonic()
        ready = [queued for queued in queue.waiting if queued.visible_at <= now]
        return SubscriptionStats(
            ready=len(ready),
            delayed=len(queue.waiting) - len(ready),
            in_flight=len(queue.in_flight),
            dead=len(queue.dead),
            oldest_age=max((now - queued.visible_at for queued in ready), default=None),
            consumers=sum(each.subscription == subscription.name for each in self.broker.consumers),
            declared=subscription.name in self.broker.queues,
            held=queue.count_held(now),
        )

    async def examine(self, *, thorough: bool = False) -> BrokerFacts:
        queues = self._reach().queues
        return BrokerFacts(
            clock_ahead=0.0,
            subscriptions=tuple(
                KnownSubscription(name, len(queue.waiting) + len(queue.in_flight))
                for name, queue in sorted(queues.items())
            ),
            forbidden=(),
        )

    async def census(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str] = (),
        *,
        untouched: Collection[str] = (),
    ) -> Census:
        broker, now, found = self._reach(), self._clock.monotonic(), Census()
        named = {subscription.name for subscription in subscriptions}
        for message in messages:
            named |= broker.bindings.get(message, set())
        for name in sorted(named & broker.queues.keys()):
            queue = broker.queues[name]
            for queued in queue.waiting:
                due = queued.visible_at <= now
                found.add(name, queued.envelope, "ready" if due else "delayed")
            for queued in queue.in_flight.values():
                found.add(name, queued.envelope, "in_flight")
            for letter in queue.dead.values():
                found.add(name, letter.envelope, "dead")
        for queued in broker.unrouted:
            if queued.envelope.name in messages:
                found.add("", queued.envelope, "unrouted")
        return found

    async def find(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str],
        wanted: Collection[str],
    ) -> Found:
        broker, now, found = self._reach(), self._clock.monotonic(), list[Located]()

        def look(name: str, state: State, envelope: Envelope) -> None:
            if matches(envelope, wanted):
                found.append(Located(name, state, Envelope(envelope.attributes, b"")))

        for name in sorted({each.name for each in subscriptions} & broker.queues.keys()):
            queue = broker.queues[name]
            for queued in queue.waiting:
                look(name, "ready" if queued.visible_at <= now else "delayed", queued.envelope)
            for queued in queue.in_flight.values():
                look(name, "in_flight", queued.envelope)
        for queued in broker.unrouted:
            if queued.envelope.name in messages:
                look("", "unrouted", queued.envelope)
        return Found(tuple(found))

    async def unrouted(
        self,
        messages: Collection[str],
        subscriptions: Sequence[Subscription] = (),
        *,
        thorough: bool = False,
    ) -> Sequence[Unrouted]:
        now, oldest = self._clock.monotonic(), dict[str, float]()
        numbers, sizes = Counter[str](), Counter[str]()
        for queued in self._reach().unrouted:
            name = queued.envelope.name
            if thorough or name in messages:
                oldest.setdefault(name, queued.visible_at)
                numbers[name] += 1
                sizes[name] += len(queued.envelope.data)
        return [
            Unrouted(name, numbers[name], now - oldest[name], sizes[name])
            for name in sorted(numbers)
        ]

    async def purge_unrouted(
        self,
        message: str,
        subscriptions: Sequence[Subscription] = (),
        *,
        keep: int = 0,
        older_than: float | None = None,
    ) -> int:
        broker, now = self._reach(), self._clock.monotonic()
        ours = [queued for queued in broker.unrouted if queued.envelope.name == message]
        purged = {
            queued.sequence
            for queued in ours[: max(len(ours) - keep, 0)]
            if older_than is None or now - queued.visible_at > older_than
        }
        broker.unrouted = [each for each in broker.unrouted if each.sequence not in purged]
        return len(purged)

    async def dead_letters(
        self,
        subscription: Subscription,
        *,
        limit: int,
        most_bytes: int | None = None,
        only: Collection[str] | None = None,
    ) -> Sequence[DeadLetter]:
        queue = self._queue(subscription)
        return UniqueDeadLetters(limit, most_bytes, only).add_all(queue.dead.values())

    async def replay(
        self,
        subscription: Subscription,
        ids: Sequence[str],
        edited: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Sequence[str]:
        queue = self._queue(subscription)
        found = set[str]()
        for first, *others in _copies(queue, ids):
            envelope = queue.dead[first].envelope
            data = next((edited[each] for each in (first, *others) if each in edited), None)
            if data is not None:
                envelope = Envelope(envelope.attributes, data)
            now, died = self._clock.monotonic(), queue.died[first]
            sequence = next(self.broker.sequence) if queue.order is None else died.sequence
            queue.forget_dead([first, *others], now)
            queue.put_again(QueuedMessage(envelope, now, sequence))
            found.update([first, *others])
        return [letter_id for letter_id in dict.fromkeys(ids) if letter_id in found]

    async def discard(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        queue = self._queue(subscription)
        found = {letter_id for group in _copies(queue, ids) for letter_id in group}
        queue.forget_dead(found, self._clock.monotonic())
        return [letter_id for letter_id in dict.fromkeys(ids) if letter_id in found]

    def _queue(self, subscription: Subscription) -> MemoryQueue:
        """The subscription's queue, or an empty one if it was not declared."""
        return self._reach().queues.get(subscription.name, MemoryQueue())

    def _reach(self) -> MemoryBroker:
        """The broker; Unreachable if it is stopped or this connection is closed."""
        if self._closed:
            raise Unreachable("This connection to the memory broker is closed: connect first.")
        if not self.broker.running:
            raise Unreachable("The memory broker is stopped: start it.")
        return self.broker


def _copies(queue: MemoryQueue, ids: Sequence[str]) -> Sequence[Sequence[str]]:
    return group_copies(((letter.id, fingerprint(letter)) for letter in queue.dead.values()), ids)


class _MemoryConsumer:
    def __init__(self, queue: MemoryQueue, subscription: str, prefetch: int, clock: Clock) -> None:
        self._queue = queue
        self.subscription = subscription
        self._prefetch = prefetch
        self._clock = clock
        self._held: dict[int, QueuedMessage] = {}
        """What was received and is unsettled, by the token of its delivery."""
        self._tokens = itertools.count()
        self._lost = False

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while True:
            self._reach()
            now = self._clock.monotonic()
            if ready := self._take(min(limit, self._prefetch - len(self._held)), now):
                return ready
            await self._wait(now)

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        self._reach()
        for delivery, outcome in settlements:
            queued = self._held.pop(delivery.token, None)
            if queued is None:
                continue
            del self._queue.in_flight[queued.sequence]
            if self._queue.order is not None and not isinstance(outcome, Done):
                taken_back = self._queue.take_back(queued)
                for token, held in list(self._held.items()):
                    if held.sequence in taken_back:
                        del self._held[token]
            match outcome:
                case Done():
                    pass
                case RetryAfter(delay):
                    queued.visible_at = self._clock.monotonic() + delay
                    queued.attempt += 1
                    queued.deliveries = 0
                    if self._queue.order is not None:
                        self._queue.postpone(queued, queued.visible_at)
                    self._queue.put(queued)
                case Dead(reason, error):
                    self._dead_letter(queued, reason, error)
        self._queue.wake()

    def return_unsettled(self) -> None:
        """Return unsettled messages to the queue."""
        for queued in self._held.values():
            del self._queue.in_flight[queued.sequence]
            self._queue.put(queued)
        self._held.clear()

    def lose(self) -> None:
        """Lose the connection: unsettled messages return to the queue."""
        self._lost = True
        self.return_unsettled()
        self._queue.wake()

    def _reach(self) -> None:
        if self._lost:
            raise Unreachable("The connection to the memory broker was lost: open a new consumer.")

    def _take(self, limit: int, now: float) -> list[Delivery]:
        taken = self._queue.take(limit, now)
        deliveries = []
        for queued in taken:
            token = next(self._tokens)
            self._held[token] = queued
            deliveries.append(Delivery(queued.envelope, queued.attempt, queued.deliveries, token))
        return deliveries

    async def _wait(self, since: float) -> None:
        """Return when the queue has changed since then, or its next delayed message is due."""
        changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.waiters.add(changed)
        waits: list[asyncio.Future[None]] = [changed]
        next_at = self._queue.next_at(since)
        if next_at is not None and len(self._held) < self._prefetch:
            delay = max(next_at - self._clock.monotonic(), 0.0)
            waits.append(asyncio.ensure_future(self._clock.sleep(delay)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._queue.waiters.discard(changed)
            for wait in waits:
                wait.cancel()

    def _dead_letter(self, queued: QueuedMessage, reason: str, error: str) -> None:
        letter = DeadLetter(
            id=self._clock.new_id(),
            subscription=self.subscription,
            envelope=queued.envelope,
            reason=reason,
            error=error,
            attempts=queued.attempt,
            died_at=self._clock.now(),
        )
        self._queue.bury(letter, queued)
