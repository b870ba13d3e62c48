"""Redis Streams, 7.0 or later: a stream per message, a consumer group per subscription.

Under the prefix: `stream:<message>` is read by every subscription's group; `retry:<subscription>`
is a stream that only this subscription reads, `delayed:<subscription>` the sorted set of retries
that are not due, `dead:<subscription>` the stream of its dead letters.

URLs: `redis://user:password@host:6379/0`; `redis+sentinel://user:password@host1:26379,host2/name/0`
to find the master of that name by its Sentinels, whose own login is `?sentinel_username=` and
`sentinel_password=`; `redis+cluster://user:password@host1:6379,host2/` for a Redis Cluster, where
all keys under a prefix share one slot, and so one master: it survives failures, it does not spread
load. `rediss` instead of `redis` is TLS, with redis-py's options, such as `?ssl_ca_certs=ca.pem`.

Redis replicates after it has answered. When a master dies, its replica may lack the last messages
that were published, unless the URL says `?wait_replicas=1`: then publishing waits for so many
replicas, and is Unreachable while there are fewer. All else that may be lost so is done again.

A user of Redis for EventMesh needs the keys `~eventmesh:*` (`~{eventmesh}:*` on a Cluster) and
    +multi +exec +eval +time +xadd +xreadgroup +xack +xdel +xclaim +xpending +xrange +xlen +xtrim
    +xinfo|groups +xinfo|consumers +xgroup|create +xgroup|delconsumer
    +zadd +zrem +zcard +zrange +zrangebyscore +client|id +client|unblock
and besides `wait` for wait_replicas, `cluster|slots` and `command` on a Cluster, and `scan` for
`eventmesh unrouted`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager

from eventmesh.clock import Clock
from eventmesh.errors import UsageError
from eventmesh.redact import redact_error
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
from eventmesh.transports.redis import scripts
from eventmesh.transports.redis.address import locator_for, understand
from eventmesh.transports.redis.census import Counting
from eventmesh.transports.redis.connection import Redis
from eventmesh.transports.redis.consumer import RETURNED, RedisConsumer
from eventmesh.transports.redis.entries import dead_letter, head
from eventmesh.transports.redis.keys import Layout
from eventmesh.transports.redis.publishing import Publisher
from eventmesh.transports.redis.scripts import Command, call
from eventmesh.transports.redis.unrouted import UnroutedStreams
from eventmesh.wire.envelope import Envelope

COUNT_LIMIT = 10_000

LETTERS = 100
"""How many dead letters are read at once."""


class RedisStreamsTransport:
    """One process's connections to a Redis."""

    atomic_batches = True
    exact_deliveries = True

    def __init__(self, url: str, clock: Clock, options: TransportOptions) -> None:
        place = understand(url)
        self._url = url
        self._clock = clock
        self._options = options
        self._layout = Layout(options.prefix, one_slot=place.kind == "cluster")
        self._redis = Redis(
            url, dict(place.options), locator_for(place, self._layout.stream("any"))
        )
        self._publisher = Publisher(self._redis, self._layout, place.wait_replicas)
        self._not_given_back: dict[str, list[RedisConsumer]] = {}

    async def connect(self) -> None:
        self._redis.open()
        try:
            # An empty transaction, because where MULTI is forbidden, what follows it would be
            # done all the same, piece by piece.
            await self._redis.batch([("MULTI",), ("EXEC",)])
        except TypeError as error:  # redis-py's word on an option that it does not know
            raise UsageError(
                f"The broker URL has an option that cannot be used: "
                f"{redact_error(error, self._url)}. See redis-py's documentation of its "
                f"connections for those that can."
            ) from None

    async def close(self) -> None:
        await self._redis.close()

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        for subscription in subscriptions:
            keys = self._layout.of(subscription)
            await self._redis.run(scripts.DECLARE, keys.streams, keys.group)

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        return await self._publisher.publish(envelopes)

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[RedisConsumer]:
        await self.declare([subscription])
        await self._give_back_for_former(subscription)
        consumer = RedisConsumer(
            self._redis,
            self._layout.of(subscription),
            prefetch,
            self._clock,
            self._options.visibility_timeout,
        )
        try:
            yield consumer
        finally:
            if not await consumer.leave():
                self._not_given_back.setdefault(subscription.name, []).append(consumer)

    async def _give_back_for_former(self, subscription: Subscription) -> None:
        """What our consumers held when Redis went away need not wait until they count as dead."""
        former = self._not_given_back.setdefault(subscription.name, [])
        for consumer in list(former):
            await consumer.give_back()
            if consumer in former:
                former.remove(consumer)

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        keys = self._layout.of(subscription)
        counted, delayed, dead = await self._redis.batch(
            [
                call(scripts.STATS, keys.streams, keys.group, RETURNED, COUNT_LIMIT),
                ("ZCARD", keys.delayed),
                ("XLEN", keys.dead),
            ]
        )
        ready, in_flight, oldest_ms = counted
        return SubscriptionStats(
            ready=ready,
            delayed=delayed,
            in_flight=in_flight,
            dead=dead,
            oldest_age=None if oldest_ms < 0 else oldest_ms / 1000,
        )

    async def census(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str] = (),
        *,
        untouched: Collection[str] = (),
    ) -> Census:
        return await Counting(self._redis, self._layout).count(subscriptions, messages)

    async def unrouted(
        self,
        messages: Collection[str],
        subscriptions: Sequence[Subscription] = (),
        *,
        thorough: bool = False,
    ) -> Sequence[Unrouted]:
        return await UnroutedStreams(self._redis, self._layout).count(messages, thorough)

    async def purge_unrouted(
        self,
        message: str,
        subscriptions: Sequence[Subscription] = (),
        *,
        keep: int = 0,
        older_than: float | None = None,
    ) -> int:
        return await UnroutedStreams(self._redis, self._layout).purge(message, keep, older_than)

    async def dead_letters(self, subscription: Subscription, *, limit: int) -> Sequence[DeadLetter]:
        listing = UniqueDeadLetters(limit)
        async for letter in self._letters(subscription):
            if listing.is_full:
                break
            listing.add(letter)
        return listing.letters

    async def replay(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        keys = self._layout.of(subscription)

        def give_back(group: Sequence[str]) -> Command:
            return call(scripts.REPLAY, (keys.dead, keys.retry), head(1, self._clock), *group)

        return await self._for_each_message(subscription, ids, give_back)

    async def discard(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        key = self._layout.of(subscription).dead
        return await self._for_each_message(subscription, ids, lambda group: ("XDEL", key, *group))

    async def _for_each_message(
        self,
        subscription: Subscription,
        ids: Sequence[str],
        command: Callable[[Sequence[str]], Command],
    ) -> Sequence[str]:
        """Do this with all dead letters of each message of which one is named; returns those of the
        ids that were found. The answer to the command is whether any was there."""
        marks = [(letter.id, fingerprint(letter)) async for letter in self._letters(subscription)]
        groups = group_copies(marks, ids)
        found = set[str]()
        for start in range(0, len(groups), LETTERS):
            some = groups[start : start + LETTERS]
            answers = await self._redis.batch([command(group) for group in some])
            for group, answer in zip(some, answers, strict=True):
                if answer:
                    found.update(group)
        return [id_ for id_ in dict.fromkeys(ids) if id_ in found]

    async def _letters(self, subscription: Subscription) -> AsyncIterator[DeadLetter]:
        """All dead letters, in their order."""
        key, start = self._layout.of(subscription).dead, b"-"
        while entries := await self._redis.ask("XRANGE", key, start, "+", "COUNT", LETTERS):
            for entry in entries:
                yield dead_letter(subscription.name, entry)
            start = b"(" + entries[-1][0]
