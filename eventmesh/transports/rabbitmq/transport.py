"""RabbitMQ 3.10 and later, by AMQP 0-9-1, with no plugin.

Publishing and consuming have a connection each: RabbitMQ stops reading from a connection that
publishes when it is short of memory or disk, and acknowledgements must still pass then.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelNotFoundEntity

from eventmesh.clock import Clock
from eventmesh.errors import PublishError, PublishInterrupted, Unreachable
from eventmesh.transports.base import (
    DeadLetter,
    Subscription,
    SubscriptionStats,
    TransportOptions,
    Unrouted,
)
from eventmesh.transports.census import Census
from eventmesh.transports.letters import Listing, Mark, copies, mark_of
from eventmesh.transports.rabbitmq.census import LookedInto, Looking
from eventmesh.transports.rabbitmq.connection import Link
from eventmesh.transports.rabbitmq.consumer import AmqpConsumer
from eventmesh.transports.rabbitmq.letters import LetterIds, letter_of
from eventmesh.transports.rabbitmq.parcels import Parcel, again, properties_of
from eventmesh.transports.rabbitmq.publishing import PUBLISH_TIMEOUT, Sender, Shipment
from eventmesh.transports.rabbitmq.taking import MOST_HELD, Taken, taking
from eventmesh.transports.rabbitmq.topology import Piece, Topology
from eventmesh.transports.rabbitmq.unrouted import UnroutedQueues
from eventmesh.transports.rabbitmq.upkeep import Refusals, Searched, TopologyUpkeep
from eventmesh.wire.envelope import Envelope

MOST_FOREIGN = 1000
"""Messages of names that nobody has declared, among which ours are looked for: they got there only
if somebody deleted the queue of their name."""

MOVED_AT_ONCE = 500
"""Messages that are held while they are published anew."""


class AmqpTransport:
    """One process's connections to a RabbitMQ broker."""

    atomic_batches = False
    exact_deliveries = False  # RabbitMQ counts all that it is given back

    def __init__(self, url: str, clock: Clock, options: TransportOptions) -> None:
        self._clock = clock
        self._topology = Topology(options.prefix)
        self._publishing = Link(url, f"{options.prefix} publishing", options)
        self._consuming = Link(url, f"{options.prefix} consuming", options)
        self._sender = Sender(self._publishing)
        self._refusals = Refusals(clock)
        self._upkeep = TopologyUpkeep(
            self._consuming,
            self._topology,
            clock,
            self._refusals,
            self._route_again,
            self._search_alone,
        )
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger("eventmesh.rabbitmq")

    async def connect(self) -> None:
        await self._publishing.open()
        self._consuming.allow()

    async def close(self) -> None:
        await self._upkeep.stop()
        await self._consuming.close()
        await self._publishing.close()

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        await self._make(self._publishing, subscriptions)
        await self._start(subscriptions)

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        if not envelopes:
            return
        exchange = self._topology.exchange
        shipment = Shipment(
            [
                Parcel(exchange, envelope.name, envelope.data, properties_of(envelope))
                for envelope in envelopes
            ]
        )
        needs = self._topology.for_publishing(envelope.name for envelope in envelopes)
        try:
            async with self._publishing.call(PUBLISH_TIMEOUT):
                refused = await self._sender.send(shipment, needs)
        except Unreachable as error:
            confirmed = frozenset(envelopes[place].id for place in shipment.confirmed)
            raise PublishInterrupted(str(error), confirmed) from error
        if refused:
            raise PublishError({envelopes[place].id: why for place, why in refused.items()})

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[AmqpConsumer]:
        # Over the connection that consumes: the other may be blocked, and this must go on.
        await self._make(self._consuming, [subscription])
        await self._start([subscription])
        consumer = AmqpConsumer(
            self._consuming, self._publishing, subscription, self._topology, self._clock
        )
        try:
            await consumer.start(prefetch)
            yield consumer
        finally:
            await consumer.leave()

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        async with self._consuming.call():
            ready = await self._count(self._topology.queue(subscription))
            dead = await self._count(self._topology.dead(subscription))
        return SubscriptionStats(ready, delayed=None, in_flight=None, dead=dead, oldest_age=None)

    async def census(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str] = (),
        *,
        untouched: Collection[str] = (),
    ) -> Census:
        looking = Looking(self._consuming, self._topology, self._clock)
        found = await looking.count(subscriptions, messages, untouched)
        if any(kind.state == "unrouted" for kind in found.lots):
            # A subscription that was declared while they were held has not found them.
            await self._route_again(await self._taken(subscriptions))
        return found

    async def _taken(self, subscriptions: Sequence[Subscription]) -> set[str]:
        """The messages that subscriptions take which have been declared."""
        async with self._consuming.call(None):
            return {
                name
                for subscription in subscriptions
                if await self._ready(self._topology.queue(subscription)) is not None
                for name in subscription.messages
            }

    async def unrouted(
        self,
        messages: Collection[str],
        subscriptions: Sequence[Subscription] = (),
        *,
        thorough: bool = False,
    ) -> Sequence[Unrouted]:
        queues = UnroutedQueues(self._consuming, self._topology, self._clock)
        if not thorough:
            return await queues.count(messages)
        found = await queues.look(messages)
        await self._give_late(subscriptions, {each.message for each in found if not each.foreign})
        return found

    async def purge_unrouted(
        self,
        message: str,
        subscriptions: Sequence[Subscription] = (),
        *,
        keep: int = 0,
        older_than: float | None = None,
    ) -> int:
        taken = await self._taken(subscriptions)
        if message:
            taken &= {message}
        # What they take is unrouted all the same if somebody deleted bindings or the exchange.
        if message:
            await self._route_again(taken)
        if not (message and keep):
            await self._search_foreign(taken)
        if not all(map(self._refusals.may_try, taken)):
            return 0  # RabbitMQ refused some of it, which stays
        queues = UnroutedQueues(self._consuming, self._topology, self._clock)
        purged = await queues.purge(message, keep, older_than)
        await self._give_late(subscriptions, {message})
        return purged

    async def _give_late(
        self, subscriptions: Sequence[Subscription], messages: Collection[str]
    ) -> None:
        """Bring what was held to the subscriptions that were declared meanwhile and missed it."""
        if waiting := set(messages) & await self._taken(subscriptions):
            await self._route_again(waiting)

    async def dead_letters(self, subscription: Subscription, *, limit: int) -> Sequence[DeadLetter]:
        for most in (limit, MOST_HELD):
            listing, read = Listing(limit), 0
            async with taking(self._consuming, self._topology.dead(subscription), most) as taken:
                for letter, _ in _letters(subscription, await taken.next()):
                    listing.add(letter)
                    read += 1
            if listing.is_full or read < most:
                break  # else several were of one message
        return listing.letters

    async def replay(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        queue = self._topology.queue(subscription)
        async with taking(self._consuming, self._topology.dead(subscription)) as taken:
            found = _find(subscription, await taken.next(), ids)
            groups = [list(group.values()) for group in found]
            parcels = [
                again(first.header.properties, first.body, "", queue) for first, *_ in groups
            ]
            needs = self._topology.for_subscription(subscription)
            await self._move(taken, groups, parcels, needs)
        return _of_these(ids, found)

    async def discard(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        async with taking(self._consuming, self._topology.dead(subscription)) as taken:
            found = _find(subscription, await taken.next(), ids)
            await taken.acknowledge(message for group in found for message in group.values())
        return _of_these(ids, found)

    async def _make(self, link: Link, subscriptions: Sequence[Subscription]) -> None:
        """Make what these need, whether it was made before or not: somebody may have deleted it."""
        pieces = [
            piece
            for subscription in subscriptions
            for piece in self._topology.for_subscription(subscription)
        ]
        link.forget(pieces)
        await link.ensure(pieces or self._topology.for_publishing())

    async def _start(self, subscriptions: Sequence[Subscription]) -> None:
        """Bring what was kept to those of these that this process has not had before. The others
        were here already, so that something was lost, and others may have lost theirs, too: the
        upkeep brings it back once these had time to restore them."""
        new = [each for each in subscriptions if not self._upkeep.covers(each)]
        names = {name for subscription in new for name in subscription.messages}
        await self._route_again(names)
        await self._search_foreign(names)
        self._upkeep.cover(new)

    async def _count(self, queue: str) -> int:
        """How many messages are ready in the queue; none where there is no queue."""
        return await self._ready(queue) or 0

    async def _ready(self, queue: str) -> int | None:
        """How many messages are ready in the queue; None where there is no queue."""
        try:
            # Asking for a queue that is not there closes the channel, so it gets one of its own.
            async with self._consuming.channel() as channel:
                return (await channel.queue_declare(queue, passive=True)).message_count or 0
        except ChannelNotFoundEntity:
            return None

    async def _route_again(self, names: Iterable[str]) -> Counter[str]:
        """Bring what was kept for want of a subscription to those that take it now: through the
        exchange, so that all that are declared together get theirs. What is refused stays, and its
        name is left alone for a while. Returns how many of each name went."""
        wanted = [name for name in sorted(set(names)) if self._refusals.may_try(name)]
        needs = self._topology.for_publishing(wanted)
        brought: Counter[str] = Counter()
        for name in wanted:
            brought += await self._empty(self._topology.kept(name), [name], None, needs)
        return brought

    async def _search_foreign(self, names: Iterable[str]) -> Counter[str]:
        """The same for those of these names that are among the oldest foreign messages."""
        wanted = [name for name in sorted(set(names)) if self._refusals.may_try(name)]
        async with self._consuming.call():
            if not wanted or not await self._count(self._topology.foreign):
                return Counter()
        needs = self._topology.for_publishing(wanted)
        return await self._empty(self._topology.foreign, wanted, MOST_FOREIGN, needs)

    async def _search_alone(self, names: Iterable[str], known: int) -> Searched | None:
        """Search where there are not as many foreign messages as known; None where somebody else
        is looking into queues, whose messages would be missed."""
        looking = Looking(self._consuming, self._topology, self._clock)
        try:
            async with looking.alone(patience=0.0):
                async with self._consuming.call():
                    foreign = await self._count(self._topology.foreign)
                brought = await self._search_foreign(names) if foreign != known else Counter[str]()
                return Searched(foreign, brought)
        except LookedInto:
            return None

    async def _empty(
        self, queue: str, names: Sequence[str], most: int | None, needs: Sequence[Piece]
    ) -> Counter[str]:
        """Publish anew what is in this queue of messages of these names, up to the first of each
        name that is refused; returns how many of each went."""
        exchange = self._topology.exchange
        wanted, brought = set(names), Counter[str]()
        async with taking(
            self._consuming, queue, most or sys.maxsize, at_once=most or MOVED_AT_ONCE
        ) as taken:
            while wanted and (messages := await taken.next(MOVED_AT_ONCE)):
                ours = [message for message in messages if _key(message) in wanted]
                parcels = [
                    again(message.header.properties, message.body, exchange, _key(message))
                    for message in ours
                ]
                refused: Collection[str] = ()
                try:
                    await self._move(taken, [[message] for message in ours], parcels, needs)
                except PublishError as error:
                    refused = error.refused
                    self._log.warning("messages stay unrouted", queue=queue, reason=str(error))
                stay = {_key(message) for message in ours if _id(message) in refused}
                brought.update(_key(message) for message in ours if _id(message) not in refused)
                self._refusals.note({_key(message) for message in ours}, stay)
                wanted -= stay
        return brought

    async def _move(
        self,
        taken: Taken,
        groups: Sequence[Sequence[DeliveredMessage]],
        parcels: Sequence[Parcel],
        needs: Sequence[Piece],
    ) -> None:
        """Acknowledge all messages of each group once its parcel is safe; PublishError for those
        refused."""
        if not groups:
            return
        shipment = Shipment(list(parcels))
        try:
            async with self._publishing.call(PUBLISH_TIMEOUT):
                refused = await self._sender.send(shipment, needs)
        finally:
            await taken.acknowledge(
                message for place in shipment.confirmed for message in groups[place]
            )
        if refused:
            raise PublishError(
                {
                    groups[place][0].header.properties.message_id or "": why
                    for place, why in refused.items()
                }
            )


def _letters(
    subscription: Subscription, messages: Iterable[DeliveredMessage]
) -> Iterator[tuple[DeadLetter, DeliveredMessage]]:
    """These messages of the queue of the dead letters, the oldest first, as what they are."""
    ids = LetterIds()
    for message in messages:
        came = message.header.properties
        letter = letter_of(subscription, came.headers or {}, came.content_type, message.body)
        yield replace(letter, id=ids.unique(letter.id)), message


def _find(
    subscription: Subscription, dead: Iterable[DeliveredMessage], ids: Collection[str]
) -> list[dict[str, DeliveredMessage]]:
    """All letters, by their ids and the oldest first, of each message of which one of these is a
    letter."""
    messages: dict[str, DeliveredMessage] = {}
    marks: list[tuple[str, Mark]] = []
    for letter, message in _letters(subscription, dead):
        messages[letter.id] = message
        marks.append((letter.id, mark_of(letter)))
    return [{letter_id: messages[letter_id] for letter_id in group} for group in copies(marks, ids)]


def _of_these(ids: Sequence[str], groups: Sequence[dict[str, DeliveredMessage]]) -> Sequence[str]:
    """Those of these ids that are ids of letters in the groups."""
    found = {letter_id for group in groups for letter_id in group}
    return [letter_id for letter_id in dict.fromkeys(ids) if letter_id in found]


def _key(message: DeliveredMessage) -> str:
    """The routing key by which a message was published."""
    return str(message.delivery.routing_key)  # type: ignore[union-attr]


def _id(message: DeliveredMessage) -> str:
    """By which `_move` says that a message was refused."""
    return message.header.properties.message_id or ""
