"""Counting, listing and purging unrouted messages on RabbitMQ.

They wait in a queue for each name that one of our publishers has used, `<prefix>.unrouted.<name>`,
and in `<prefix>.foreign` for all other names. RabbitMQ does not list its queues to a client, so we
can ask only for names that the caller knows. Counts come from passive declarations, which touch no
message.

RabbitMQ shows a message only by delivering it. Whoever looks inside holds the lock of inspections,
so that two never see half each, and gives back by closing the channel, which keeps the order. A
subscription that is declared while a message is held does not find it; whoever held it then
reroutes it to the subscriptions that it knows. Purging without an age holds nothing but what it
deletes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection
from datetime import datetime

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity

from eventmesh.clock import Clock
from eventmesh.transports.base import Unrouted
from eventmesh.transports.census import Census, made_at
from eventmesh.transports.rabbitmq.connection import CONNECT_TIMEOUT, MAX_HELD, BrokerConnection
from eventmesh.transports.rabbitmq.held_messages import hold_messages
from eventmesh.transports.rabbitmq.inspection import Inspector, QueueCounts, count_messages
from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.wire.cloudevents import from_headers
from eventmesh.wire.envelope import Envelope

PURGE_BATCH = 1_000
"""Messages that are held at once while they are purged."""


class UnroutedQueues:
    """The unrouted messages under a prefix."""

    def __init__(self, connection: BrokerConnection, topology: Topology, clock: Clock) -> None:
        self._connection = connection
        self._topology = topology
        self._clock = clock
        self._inspector = Inspector(connection, topology, clock)

    async def count(self, messages: Collection[str]) -> list[Unrouted]:
        """How many there are of these messages, and of foreign ones together."""
        numbers, foreign = await self._numbers(messages)
        found = [Unrouted(message, number) for message, number in numbers.items()]
        return [*found, Unrouted("", foreign, foreign=True)] if foreign else found

    async def inspect(self, messages: Collection[str]) -> list[Unrouted]:
        """As `count`, with the age of the oldest, and with the names of foreign messages."""
        numbers, foreign = await self._numbers(messages)
        queues = {message: self._topology.unrouted_queue(message) for message in numbers}
        found = []
        async with self._inspector.exclusively():
            for message, number in numbers.items():
                age = await self._age_of_first(queues[message])
                found.append(Unrouted(message, number, age))
            if foreign:
                found += await self._list_foreign()
        await self._inspector.wait_until_returned(list(queues.values()))
        return found

    async def purge(self, message: str, keep: int, older_than: float | None) -> int:
        """What `Transport.purge_unrouted` promises, but for the subscriptions."""
        queue = self._topology.unrouted_queue(message) if message else self._topology.foreign
        async with self._inspector.exclusively():
            if older_than is not None:
                purged = await self._purge_matching(queue, None, older_than)
            elif keep:
                purged = await self._purge_beyond(queue, keep)
            else:
                purged = await self._purge_all(queue)
            if message and not keep:
                purged += await self._purge_matching(
                    self._topology.foreign, message, older_than or 0.0
                )
        if older_than is not None:
            await self._inspector.wait_until_returned([queue])
        return purged

    async def _numbers(self, messages: Collection[str]) -> tuple[dict[str, int], int]:
        """How many wait of each of these messages of which any do, and how many are foreign."""
        queues = {
            message: self._topology.unrouted_queue(message) for message in messages if message
        }
        names = [*queues.values(), self._topology.foreign]
        ready = {name: n.ready for name, n in (await self._count(names)).items() if n.ready}
        numbers = {name: ready[queues[name]] for name in sorted(queues) if queues[name] in ready}
        return numbers, ready.get(self._topology.foreign, 0)

    async def _age_of_first(self, queue: str) -> float | None:
        async with hold_messages(self._connection, queue, 1) as held:
            return next((self._age(_envelope(message)) for message in await held.next()), None)

    async def _list_foreign(self) -> list[Unrouted]:
        """The foreign messages by name, as a census counts them."""
        census = Census()

        def see(_: str, __: str, envelope: Envelope) -> None:
            census.add("", envelope, "unrouted")

        async with self._inspector.holding([self._topology.foreign], see):
            pass
        numbers: dict[str, int] = {}
        oldest: dict[str, datetime] = {}
        for kind, lot in census.lots.items():
            numbers[kind.message] = numbers.get(kind.message, 0) + lot.number
            if lot.oldest is not None:
                oldest[kind.message] = min(lot.oldest, oldest.get(kind.message, lot.oldest))
        for hidden in census.hidden:  # more kinds than a census distinguishes
            numbers[""] = numbers.get("", 0) + (hidden.number or 0)
        return [
            Unrouted(name, number, self._seconds_since(oldest.get(name)), foreign=True)
            for name, number in sorted(numbers.items())
        ]

    async def _purge_all(self, queue: str) -> int:
        """All that wait, by one command."""
        async with self._connection.guard(None):
            try:
                async with self._connection.channel() as channel:
                    async with asyncio.timeout(CONNECT_TIMEOUT):
                        return (await channel.queue_purge(queue)).message_count or 0
            except ChannelNotFoundEntity:
                return 0

    async def _purge_beyond(self, queue: str, keep: int) -> int:
        """The oldest, until `keep` are left. They are counted again for each batch, because a
        subscription that is declared meanwhile empties the queue."""
        purged = 0
        while True:
            counts = (await self._count([queue])).get(queue)
            excess = 0 if counts is None else counts.ready - keep
            if excess <= 0:
                return purged
            just_purged = await self._purge_first(queue, min(excess, PURGE_BATCH))
            if not just_purged:  # somebody else holds them, or RabbitMQ does not deliver them
                return purged
            purged += just_purged

    async def _purge_first(self, queue: str, number: int) -> int:
        """The `number` oldest, or as many as there are. RabbitMQ delivers no more than these."""
        async with hold_messages(self._connection, queue, number) as held:
            purged = await held.next()
            # Otherwise each acknowledgement would make room for a message that is to be kept.
            await held.stop()
            await held.acknowledge(purged)
        return len(purged)

    async def _purge_matching(self, queue: str, message: str | None, older_than: float) -> int:
        """Those in the queue that have this name, or any, and are older than so many seconds. With
        an age, a message that does not say when it was made is kept. Without a name, this ends at
        the first message that is too young: the others came later."""
        purged = 0
        at_once = PURGE_BATCH if message is None else MAX_HELD
        async with hold_messages(self._connection, queue, sys.maxsize, at_once=at_once) as held:
            there_may_be_more = True
            while there_may_be_more and (batch := await held.next(PURGE_BATCH)):
                matching = []
                for each in batch:
                    envelope = _envelope(each)
                    age = self._age(envelope)
                    old = not older_than or (age is not None and age > older_than)
                    if old and message in (None, envelope.name):
                        matching.append(each)
                    elif message is None and age is not None:
                        there_may_be_more = False
                        break
                await held.acknowledge(matching)
                purged += len(matching)
        return purged

    async def _count(self, queues: Collection[str]) -> dict[str, QueueCounts]:
        return await count_messages(self._connection, queues)

    def _age(self, envelope: Envelope) -> float | None:
        return self._seconds_since(made_at(envelope))

    def _seconds_since(self, moment: datetime | None) -> float | None:
        return None if moment is None else max((self._clock.now() - moment).total_seconds(), 0.0)


def _envelope(message: DeliveredMessage) -> Envelope:
    properties = message.header.properties
    return from_headers(properties.headers or {}, properties.content_type, b"")
