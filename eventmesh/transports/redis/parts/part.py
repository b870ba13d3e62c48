"""One part of a prefix: all that EventMesh keeps in one slot of a Redis Cluster.

A part needs no other: its messages, retries and dead letters, and the order of its keys, are kept
by scripts inside of its slot. A prefix that is not spread is one part.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import replace

from eventmesh.clock import Clock
from eventmesh.transports.base import (
    DeadLetter,
    PublishResult,
    Subscription,
    SubscriptionStats,
    TransportOptions,
    Unrouted,
)
from eventmesh.transports.census import Census
from eventmesh.transports.dead_letters import UniqueDeadLetters, fingerprint, group_copies
from eventmesh.transports.facts import BrokerFacts
from eventmesh.transports.finding import Found
from eventmesh.transports.redis.census import RedisCensus, RedisSearch
from eventmesh.transports.redis.connection import Redis
from eventmesh.transports.redis.consumer import RETURNED, RedisConsumer
from eventmesh.transports.redis.entries import dead_letter, parcel_header
from eventmesh.transports.redis.facts import Facts
from eventmesh.transports.redis.keys import Layout
from eventmesh.transports.redis.ordered.consumer import OrderedConsumer
from eventmesh.transports.redis.prefetch import Prefetch
from eventmesh.transports.redis.publishing import Publisher
from eventmesh.transports.redis.scripts.common import Command, call
from eventmesh.transports.redis.scripts.consuming import DECLARE
from eventmesh.transports.redis.scripts.operations import DISCARD, REPLAY, STATS
from eventmesh.transports.redis.scripts.ordering import DECLARE_ORDER, ORDER_STATS
from eventmesh.transports.redis.unrouted import UnroutedStreams
from eventmesh.wire.cloudevents import pack
from eventmesh.wire.envelope import Envelope

COUNT_LIMIT = 10_000
"""The most undelivered entries that `stats` counts one by one, if Redis does not know the lag."""

PAGE = 100
"""How many dead letters are read at once."""

PartConsumer = RedisConsumer | OrderedConsumer


class Part:
    """What `Transport` promises, for one part of a prefix. Parts on one server may share its
    connections."""

    def __init__(
        self,
        redis: Redis,
        layout: Layout,
        wait_replicas: int,
        clock: Clock,
        options: TransportOptions,
    ) -> None:
        self.redis = redis
        self.layout = layout
        self.publisher = Publisher(redis, layout, wait_replicas, clock)
        self._clock = clock
        self._options = options
        self._not_returned: dict[str, list[PartConsumer]] = {}

    async def connect(self) -> None:
        """Fail now if Redis is unreachable, or if our user may not do what publishing needs."""
        self.redis.open()
        # An empty transaction, because without the right to MULTI, the commands of a transaction
        # would be executed one by one.
        await self.redis.batch([("MULTI",), ("EXEC",)])

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        for subscription in subscriptions:
            keys, order = self.layout.of(subscription), subscription.order
            await self.redis.run(DECLARE, keys.streams, keys.group)
            if order is None:
                await self.redis.ask("HDEL", keys.order, "after_dead")
            else:
                await self.redis.run(DECLARE_ORDER, keys.ordered, keys.group, order.after_dead)

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        return await self.publisher.publish(envelopes)

    def consume(self, subscription: Subscription, prefetch: Prefetch) -> PartConsumer:
        """Begin to consume a subscription that is declared, until `leave`."""
        keys, timeout = self.layout.of(subscription), self._options.visibility_timeout
        if subscription.order is None:
            return RedisConsumer(self.redis, keys, prefetch, self._clock, timeout)
        return OrderedConsumer(self.redis, keys, subscription.order, prefetch, self._clock, timeout)

    async def leave(self, subscription: Subscription, consumer: PartConsumer) -> None:
        """Return what a consumer has not settled; if Redis is unreachable, `return_for_former` does
        it later."""
        if not await consumer.leave():
            self._not_returned.setdefault(subscription.name, []).append(consumer)

    async def return_for_former(self, subscription: Subscription) -> None:
        """Return what our earlier consumers had pending when Redis became unreachable. Otherwise
        these entries would wait for the visibility timeout."""
        former = self._not_returned.setdefault(subscription.name, [])
        for consumer in list(former):
            await consumer.return_pending()
            if consumer in former:
                former.remove(consumer)

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        keys = self.layout.of(subscription)
        silent_ms = round(self._options.visibility_timeout * 1000)
        counted, delayed, dead, of_keys = await self.redis.batch(
            [
                call(STATS, keys.streams, keys.group, RETURNED, COUNT_LIMIT, silent_ms),
                ("ZCARD", keys.delayed),
                ("XLEN", keys.dead),
                call(ORDER_STATS, keys.ordered, keys.group),
            ]
        )
        ready, in_flight, oldest_ms, consumers, declared = counted
        boxed, held_back, held, leased, boxed_ms, lessees, is_ordered = of_keys
        oldest_ms = max(oldest_ms, boxed_ms)
        return SubscriptionStats(
            ready=ready + boxed,
            delayed=delayed + held_back,
            in_flight=in_flight + leased,
            dead=dead,
            oldest_age=None if oldest_ms < 0 else oldest_ms / 1000,
            consumers=consumers + lessees,
            declared=bool(declared) and (is_ordered or subscription.order is None),
            held=held,
        )

    async def examine(self, *, thorough: bool) -> BrokerFacts:
        return await Facts(self.redis, self.layout, self._clock).examine(thorough=thorough)

    async def census(
        self, subscriptions: Sequence[Subscription], messages: Collection[str], found: Census
    ) -> None:
        """Add what is in this part."""
        await RedisCensus(self.redis, self.layout, found).count(subscriptions, messages)

    async def find(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str],
        wanted: Collection[str],
    ) -> Found:
        return await RedisSearch(self.redis, self.layout, wanted).find(subscriptions, messages)

    async def unrouted(self, messages: Collection[str], *, thorough: bool) -> Sequence[Unrouted]:
        return await UnroutedStreams(self.redis, self.layout).count(messages, thorough)

    async def purge_unrouted(self, message: str, keep: int, older_than: float | None) -> int:
        return await UnroutedStreams(self.redis, self.layout).purge(message, keep, older_than)

    async def dead_letters(
        self,
        subscription: Subscription,
        limit: int,
        most_bytes: int | None,
        only: Collection[str] | None,
    ) -> Sequence[DeadLetter]:
        listing = UniqueDeadLetters(limit, most_bytes, only)
        async for letter in self._dead_letters(subscription):
            if listing.is_full:
                break
            listing.add(letter)
        return listing.letters

    async def replay(
        self, subscription: Subscription, ids: Sequence[str], edited: Mapping[str, bytes]
    ) -> Sequence[str]:
        keys = self.layout.of(subscription)
        packed: dict[str, bytes] = {}
        if edited:
            async for letter in self._dead_letters(subscription):
                if letter.id in edited:
                    packed[letter.id] = pack(replace(letter.envelope, data=edited[letter.id]))

        def replay_command(group: Sequence[str]) -> Command:
            instead = next((packed[each] for each in group if each in packed), b"")
            header = parcel_header(1, self._clock)
            return call(REPLAY, keys.ordering, header, instead, *group)

        return await self._for_each_message(subscription, ids, replay_command)

    async def discard(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        keys = self.layout.of(subscription).ordering
        return await self._for_each_message(
            subscription, ids, lambda group: call(DISCARD, keys, *group)
        )

    async def _for_each_message(
        self,
        subscription: Subscription,
        ids: Sequence[str],
        command: Callable[[Sequence[str]], Command],
    ) -> Sequence[str]:
        """Run a command for all dead letters of each message that has one among `ids`; returns the
        ids that were found. The command answers 0 if none of the dead letters exists."""
        fingerprints = [
            (letter.id, fingerprint(letter)) async for letter in self._dead_letters(subscription)
        ]
        groups = group_copies(fingerprints, ids)
        found = set[str]()
        for start in range(0, len(groups), PAGE):
            some = groups[start : start + PAGE]
            answers = await self.redis.batch([command(group) for group in some])
            for group, answer in zip(some, answers, strict=True):
                if answer:
                    found.update(group)
        return [id_ for id_ in dict.fromkeys(ids) if id_ in found]

    async def _dead_letters(self, subscription: Subscription) -> AsyncIterator[DeadLetter]:
        """All dead letters, oldest first."""
        key, start = self.layout.of(subscription).dead, b"-"
        while entries := await self.redis.ask("XRANGE", key, start, "+", "COUNT", PAGE):
            for entry in entries:
                yield dead_letter(subscription.name, entry)
            start = b"(" + entries[-1][0]
