"""What moves between a real broker and the workers of a mesh, as the mesh sees it itself.

No broker tells exactly when it has nothing more to deliver: RabbitMQ does not count what it has
sent to a consumer, and Redis does not know a message that is being published. But all workers of a
mesh run in the test's own process, so that each of their connections is watched:

    published   every subscription that wants the message awaits it
    received    its worker holds it
    settled     it is done with; or awaited again, once the delay of its retry is over

Nothing goes on while no consumed subscription awaits or holds a message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.testing.mesh.broker import Record
from eventmesh.testing.virtual.process import Process
from eventmesh.transports.base import Consumer, Delivery, PublishResult, Subscription, Transport
from eventmesh.transports.outcome import Outcome, RetryAfter
from eventmesh.wire.envelope import Envelope

Copy = tuple[str, str]
"""A subscription, and the id of a message that it wants."""


class Traffic:
    """All that the watched connections of one mesh have told."""

    def __init__(self, clock: Clock, record: Record) -> None:
        self.record = record
        self.changes = 0
        """Grows with each message that is published, received or settled."""
        self.delays: set[float] = set()
        """The seconds after which messages were retried."""
        self._clock = clock
        self._declared: dict[str, frozenset[str]] = {}
        self._consumed = Counter[str]()
        self._awaited = Counter[Copy]()
        self._held = Counter[Copy]()
        self._retried: dict[Copy, float] = {}

    def going_on(self) -> list[str]:
        """What awaits a worker, or is held by one, in words."""
        now = self._clock.monotonic()
        due = [copy for copy, at in self._retried.items() if at <= now]
        awaited = Counter(name for name, _ in (*self._awaited.elements(), *due))
        held = Counter(name for name, _ in self._held.elements())
        return [
            f"{name} handles {held[name]} messages, {awaited[name]} wait"
            for name in sorted(awaited.keys() | held.keys())
            if held[name] or self.is_consumed(name)
        ]

    def is_consumed(self, subscription: str) -> bool:
        return self._consumed[subscription] > 0

    @property
    def next_retry(self) -> float | None:
        """In how many seconds the next retry is due; None without one."""
        now = self._clock.monotonic()
        return min((max(at - now, 0.0) for at in self._retried.values()), default=None)

    # What the connections tell

    def declare(self, subscriptions: Sequence[Subscription]) -> None:
        for subscription in subscriptions:
            self._declared[subscription.name] = frozenset(subscription.messages)
        self.record.declare(subscriptions)

    def consume(self, subscription: str, change: int) -> None:
        self._consumed[subscription] += change

    def publish(self, envelopes: Sequence[Envelope]) -> None:
        """They are on their way: a worker may receive them before the broker confirms them."""
        self.changes += 1
        self._awaited.update(self._copies(envelopes))

    def confirm(self, envelopes: Sequence[Envelope], result: PublishResult) -> None:
        """The broker has answered: it does not have all of them."""
        self.changes += 1
        stored = [each for each in envelopes if result.is_confirmed(each)]
        self._awaited -= Counter(
            self._copies([each for each in envelopes if not result.is_confirmed(each)])
        )
        self.record.publish(stored)

    def receive(self, subscription: str, deliveries: Sequence[Delivery]) -> None:
        self.changes += 1
        copies = [(subscription, id_of(each)) for each in deliveries]
        self._awaited -= Counter(copies)
        self._held.update(copies)
        for copy in copies:
            self._retried.pop(copy, None)

    def settle(
        self,
        subscription: str,
        process: Process | None,
        settlements: Sequence[tuple[Delivery, Outcome]],
    ) -> None:
        self.changes += 1
        for delivery, outcome in settlements:
            if isinstance(outcome, RetryAfter):
                self.delays.add(outcome.delay)
                due = self._clock.monotonic() + outcome.delay
                self._retried[subscription, id_of(delivery)] = due
            self.record.settle(subscription, process, delivery, outcome)
        self.release(subscription, Counter(id_of(delivery) for delivery, _ in settlements))

    def release(self, subscription: str, ids: Counter[str]) -> None:
        """A worker does not hold these any more."""
        self.changes += 1
        self._held -= Counter({(subscription, each): number for each, number in ids.items()})

    def give_back(self, subscription: str, ids: Counter[str]) -> None:
        """A consumer has ended with these unsettled: they are delivered again."""
        self.release(subscription, ids)
        self._awaited.update({(subscription, each): number for each, number in ids.items()})

    def _copies(self, envelopes: Sequence[Envelope]) -> list[Copy]:
        return [
            (name, envelope.id)
            for envelope in envelopes
            for name, messages in self._declared.items()
            if envelope.name in messages
        ]


class WatchedTransport:
    """A connection to a broker that tells `traffic` what moves on it. What is not here goes to the
    connection as it is."""

    def __init__(self, transport: Transport, traffic: Traffic, process: Process | None) -> None:
        self._transport = transport
        self._traffic = traffic
        self._process = process

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        self._traffic.declare(subscriptions)
        await self._transport.declare(subscriptions)

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        self._traffic.publish(envelopes)
        result = PublishResult.interrupted(envelopes, Unreachable("The call was cancelled."))
        try:
            result = await self._transport.publish(envelopes)
        finally:
            self._traffic.confirm(envelopes, result)
        return result

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[Consumer]:
        self._traffic.declare([subscription])
        async with self._transport.consume(subscription, prefetch=prefetch) as consumer:
            watched = _WatchedConsumer(consumer, subscription.name, self._traffic, self._process)
            self._traffic.consume(subscription.name, +1)
            try:
                yield watched
            finally:
                self._traffic.consume(subscription.name, -1)
                self._traffic.give_back(subscription.name, watched.held)


class _WatchedConsumer:
    def __init__(
        self, consumer: Consumer, subscription: str, traffic: Traffic, process: Process | None
    ) -> None:
        self.held = Counter[str]()
        """How many deliveries of each message are not settled."""
        self._consumer = consumer
        self._subscription = subscription
        self._traffic = traffic
        self._process = process

    async def receive(self, limit: int) -> Sequence[Delivery]:
        deliveries = await self._consumer.receive(limit)
        self.held.update(id_of(each) for each in deliveries)
        self._traffic.receive(self._subscription, deliveries)
        return deliveries

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        await self._consumer.settle(settlements)
        self.held -= Counter(id_of(delivery) for delivery, _ in settlements)
        self._traffic.settle(self._subscription, self._process, settlements)


def watched(transport: Transport, traffic: Traffic, process: Process | None = None) -> Transport:
    """The same connection, watched."""
    return cast(Transport, WatchedTransport(transport, traffic, process))


def id_of(delivery: Delivery) -> str:
    """The message's id; empty for what is not a message."""
    return delivery.envelope.attributes.get("id", "")
