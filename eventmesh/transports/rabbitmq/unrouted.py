"""Unrouted messages on RabbitMQ: counted, looked at, purged.

They wait in a queue for each name that one of our publishers has used, `<prefix>.unrouted.<name>`,
and in `<prefix>.foreign` for all other names. RabbitMQ does not list its queues to a client, so
only names that the caller knows can be asked for. Numbers come from passive declarations, which
touch no message.

RabbitMQ shows a message only by handing it out. Who looks inside holds the lock of the census, so
that two never see half each; and gives back by closing the channel, which keeps the order. A
subscription that is declared while a message is held does not find it, as with a census: whoever
held it then brings it to the subscriptions that it knows. Purging without an age holds nothing but
what it deletes.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Mapping
from datetime import datetime

from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity

from eventmesh.clock import Clock
from eventmesh.transports.base import Unrouted
from eventmesh.transports.census import Census, made_at
from eventmesh.transports.rabbitmq.census import Looking
from eventmesh.transports.rabbitmq.connection import CONNECT_TIMEOUT, Link
from eventmesh.transports.rabbitmq.taking import MOST_HELD, get, taking
from eventmesh.transports.rabbitmq.topology import Topology
from eventmesh.wire.cloudevents import from_headers
from eventmesh.wire.envelope import Envelope

PURGED_AT_ONCE = 1_000
"""Messages that are held at once while they are purged."""


class UnroutedQueues:
    """The unrouted messages under a prefix."""

    def __init__(self, link: Link, topology: Topology, clock: Clock) -> None:
        self._link = link
        self._topology = topology
        self._clock = clock
        self._looking = Looking(link, topology, clock)

    async def count(self, messages: Collection[str]) -> list[Unrouted]:
        """How many there are of these messages, and of foreign ones together."""
        kept, numbers, foreign = await self._numbers(messages)
        found = [Unrouted(kept[queue], number) for queue, number in numbers.items()]
        return [*found, Unrouted("", foreign, foreign=True)] if foreign else found

    async def look(self, messages: Collection[str]) -> list[Unrouted]:
        """As `count`, with the age of the oldest, and with the names of foreign messages."""
        kept, numbers, foreign = await self._numbers(messages)
        found = []
        async with self._looking.alone():
            for queue, number in numbers.items():
                found.append(Unrouted(kept[queue], number, await self._age_of_first(queue)))
            if foreign:
                found += await self._foreign()
        await self._looking.until_still(list(numbers))
        return found

    async def purge(self, message: str, keep: int, older_than: float | None) -> int:
        """What `Transport.purge_unrouted` promises, but for the subscriptions."""
        queue = self._topology.kept(message) if message else self._topology.foreign
        async with self._looking.alone():
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
            await self._looking.until_still([queue])
        return purged

    async def _numbers(
        self, messages: Collection[str]
    ) -> tuple[Mapping[str, str], Mapping[str, int], int]:
        """The messages by their queues, how many wait in those that are not empty, and how many
        are foreign."""
        kept = {self._topology.kept(message): message for message in sorted(messages) if message}
        told = await self._looking.ask_once([*kept, self._topology.foreign])
        numbers = {queue: told[queue].ready for queue in kept if queue in told}
        foreign = told.get(self._topology.foreign)
        return (
            kept,
            {queue: number for queue, number in numbers.items() if number},
            foreign.ready if foreign else 0,
        )

    async def _age_of_first(self, queue: str) -> float | None:
        async with self._link.call(None), self._link.channel() as channel:
            message = await get(channel, queue)
            return None if message is None else self._age(_envelope(message))

    async def _foreign(self) -> list[Unrouted]:
        """By name, as a census counts them."""
        census = Census()

        def see(_: str, __: str, envelope: Envelope) -> None:
            census.add("", envelope, "unrouted")

        async with self._looking.holding([self._topology.foreign], see):
            pass
        numbers: dict[str, int] = {}
        oldest: dict[str, datetime] = {}
        for kind, lot in census.lots.items():
            numbers[kind.message] = numbers.get(kind.message, 0) + lot.number
            if lot.oldest is not None:
                oldest[kind.message] = min(lot.oldest, oldest.get(kind.message, lot.oldest))
        for hidden in census.hidden:  # beyond the most kinds that a census tells apart
            numbers[""] = numbers.get("", 0) + (hidden.number or 0)
        return [
            Unrouted(name, number, self._seconds_since(oldest.get(name)), foreign=True)
            for name, number in sorted(numbers.items())
        ]

    async def _purge_all(self, queue: str) -> int:
        """All that wait, in one step of RabbitMQ's."""
        async with self._link.call(None):
            try:
                async with self._link.channel() as channel:
                    async with asyncio.timeout(CONNECT_TIMEOUT):
                        return (await channel.queue_purge(queue)).message_count or 0
            except ChannelNotFoundEntity:
                return 0

    async def _purge_beyond(self, queue: str, keep: int) -> int:
        """The oldest, until `keep` are left. Counted anew for each batch, because a subscription
        that is declared meanwhile empties the queue."""
        purged = 0
        while True:
            told = (await self._looking.ask_once([queue])).get(queue)
            excess = 0 if told is None else told.ready - keep
            if excess <= 0:
                return purged
            just_purged = await self._purge_first(queue, min(excess, PURGED_AT_ONCE))
            if not just_purged:  # somebody else holds them, or RabbitMQ does not hand them out
                return purged
            purged += just_purged

    async def _purge_first(self, queue: str, number: int) -> int:
        """The `number` oldest, or as many as there are. RabbitMQ hands out no more than these."""
        async with taking(self._link, queue, number) as taken:
            purged = await taken.next()
            # Or each acknowledgement would make room for a message that is to be kept.
            await taken.stop()
            await taken.acknowledge(purged)
        return len(purged)

    async def _purge_matching(self, queue: str, message: str | None, older_than: float) -> int:
        """Those of the queue that have this name, or any, and are older than so many seconds. A
        message that does not say when it was made is as old as need be only where no age is asked
        for. Without a name it ends at the first that is not: the others came later."""
        purged = 0
        at_once = PURGED_AT_ONCE if message is None else MOST_HELD
        async with taking(self._link, queue, sys.maxsize, at_once=at_once) as taken:
            there_may_be_more = True
            while there_may_be_more and (batch := await taken.next(PURGED_AT_ONCE)):
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
                await taken.acknowledge(matching)
                purged += len(matching)
        return purged

    def _age(self, envelope: Envelope) -> float | None:
        return self._seconds_since(made_at(envelope))

    def _seconds_since(self, moment: datetime | None) -> float | None:
        return None if moment is None else max((self._clock.now() - moment).total_seconds(), 0.0)


def _envelope(message: DeliveredMessage) -> Envelope:
    properties = message.header.properties
    return from_headers(properties.headers or {}, properties.content_type, b"")
