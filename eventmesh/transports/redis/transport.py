"""Redis Streams, 7.0 or later: a stream for each message, a consumer group for each subscription.

| key, after the prefix    | type       | holds                                                    |
|--------------------------|------------|----------------------------------------------------------|
| `stream:<message>`       | stream     | messages; every subscription to them has a group         |
| `retry:<subscription>`   | stream     | retries that are due, and replayed dead letters          |
| `delayed:<subscription>` | sorted set | retries that are not due, by their time                  |
| `dead:<subscription>`    | stream     | dead letters                                             |

An ordered subscription also has these; see `ordered.consumer` and `scripts.ordering`:

| key, after the prefix              | type       | holds                                          |
|------------------------------------|------------|------------------------------------------------|
| `order:<subscription>`             | hash       | that it is ordered, and counters               |
| `mail:<subscription>:<key>`        | list       | mailbox of a key: what is not settled          |
| `mail:<subscription>`              | list       | the same for messages without a key            |
| `ready:<subscription>`             | sorted set | keys that may be taken, oldest message first   |
| `held:<subscription>`              | sorted set | keys that wait for a retry or a dead letter    |
| `holding:<subscription>`           | hash       | how many dead letters hold a key, and since    |
| `consumers:<subscription>`         | sorted set | consumers, by the time when they count as dead |
| `leases:<subscription>:<consumer>` | hash       | the keys that a consumer has                   |
| `wake:<subscription>`              | stream     | one entry, which is new when a key is ready    |

URLs: `redis://user:password@host:6379/0`; `redis+sentinel://user:password@host1:26379,host2/name/0`
to find the master of that name through its Sentinels, whose own login is `?sentinel_username=` and
`sentinel_password=`; `redis+cluster://user:password@host1:6379,host2/` for a Redis Cluster, where
all keys under a prefix share one slot, and so one master: a cluster gives failover, not more
throughput. `rediss` instead of `redis` means TLS, with redis-py's options, such as
`?ssl_ca_certs=ca.pem`.

Redis replicates asynchronously. After a failover, the new master may lack the last messages that
were confirmed, unless the URL says `?wait_replicas=1`: then publishing waits for that many
replicas, and messages stay unconfirmed while there are fewer. Lost acknowledgements are harmless:
the deliveries come again.

A Redis user for EventMesh needs the keys `~eventmesh:*` (`~{eventmesh}:*` on a Cluster) and
    +multi +exec +eval +time +xadd +xreadgroup +xack +xdel +xclaim +xpending +xrange +xlen +xtrim
    +xinfo|groups +xinfo|consumers +xgroup|create +xgroup|delconsumer
    +zadd +zrem +zcard +zrange +zrangebyscore +client|id +client|unblock
    +del +hget +hset +hdel +hgetall +hincrby +rpush +ltrim +lindex +lset +lrange +llen +linsert
    +zscore +zcount +xread +xrevrange +xgroup|setid +xinfo|stream
and also `client|list`, by which keys of a killed consumer of an ordered subscription are free after
seconds instead of the visibility timeout, `wait` for wait_replicas, `cluster|slots` and `command`
on a Cluster, `scan` for `eventmesh unrouted` and `doctor`, and `info` and `config|get` for
`eventmesh doctor`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import MappingProxyType

from eventmesh.clock import Clock
from eventmesh.errors import UsageError
from eventmesh.redact import redact_error
from eventmesh.tracing.place import Peer
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
from eventmesh.transports.redis.address import locator_for, parse_broker_url
from eventmesh.transports.redis.census import RedisCensus, RedisSearch
from eventmesh.transports.redis.connection import Redis
from eventmesh.transports.redis.consumer import RETURNED, RedisConsumer
from eventmesh.transports.redis.entries import dead_letter, parcel_header
from eventmesh.transports.redis.facts import Facts
from eventmesh.transports.redis.keys import Layout
from eventmesh.transports.redis.ordered.consumer import OrderedConsumer
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


class RedisTransport:
    atomic_batches = True
    exact_deliveries = True
    keeps_order = True
    dead_letters_by_itself = False

    def __init__(self, url: str, clock: Clock, options: TransportOptions) -> None:
        place = parse_broker_url(url)
        self._url = url
        self._clock = clock
        self._options = options
        self._layout = Layout(options.prefix, one_slot=place.kind == "cluster")
        self._redis = Redis(
            url, dict(place.options), locator_for(place, self._layout.stream("any"))
        )
        self._publisher = Publisher(self._redis, self._layout, place.wait_replicas, clock)
        self._not_returned: dict[str, list[RedisConsumer | OrderedConsumer]] = {}

    def peer(self, *, publishing: bool) -> Peer | None:
        return self._redis.peer

    async def connect(self) -> None:
        self._redis.open()
        try:
            # An empty transaction, to fail now if MULTI is forbidden: without it, the commands of
            # a transaction would be executed one by one.
            await self._redis.batch([("MULTI",), ("EXEC",)])
        except TypeError as error:  # redis-py raises it for an unknown option
            raise UsageError(
                f"The broker URL has an option that cannot be used: "
                f"{redact_error(error, self._url)}. See redis-py's documentation of its "
                f"connections for those that can."
            ) from None

    async def close(self) -> None:
        await self._redis.close()

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        for subscription in subscriptions:
            keys, order = self._layout.of(subscription), subscription.order
            await self._redis.run(DECLARE, keys.streams, keys.group)
            if order is None:
                await self._redis.ask("HDEL", keys.order, "after_dead")
            else:
                await self._redis.run(DECLARE_ORDER, keys.ordered, keys.group, order.after_dead)

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        return await self._publisher.publish(envelopes)

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[RedisConsumer | OrderedConsumer]:
        await self.declare([subscription])
        await self._return_for_former(subscription)
        keys, timeout = self._layout.of(subscription), self._options.visibility_timeout
        consumer: RedisConsumer | OrderedConsumer
        if subscription.order is None:
            consumer = RedisConsumer(self._redis, keys, prefetch, self._clock, timeout)
        else:
            consumer = OrderedConsumer(
                self._redis, keys, subscription.order, prefetch, self._clock, timeout
            )
        try:
            yield consumer
        finally:
            if not await consumer.leave():
                self._not_returned.setdefault(subscription.name, []).append(consumer)

    async def _return_for_former(self, subscription: Subscription) -> None:
        """Return what our earlier consumers had pending when Redis became unreachable. Otherwise
        these entries would wait for the visibility timeout."""
        former = self._not_returned.setdefault(subscription.name, [])
        for consumer in list(former):
            await consumer.return_pending()
            if consumer in former:
                former.remove(consumer)

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        keys = self._layout.of(subscription)
        counted, delayed, dead, of_keys = await self._redis.batch(
            [
                call(STATS, keys.streams, keys.group, RETURNED, COUNT_LIMIT, self._silent_ms),
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

    @property
    def _silent_ms(self) -> int:
        """After how long a consumer that does not read counts as dead."""
        return round(self._options.visibility_timeout * 1000)

    async def examine(self, *, thorough: bool = False) -> BrokerFacts:
        facts = Facts(self._redis, self._layout, self._clock)
        return await facts.examine(thorough=thorough)

    async def census(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str] = (),
        *,
        untouched: Collection[str] = (),
    ) -> Census:
        return await RedisCensus(self._redis, self._layout).count(subscriptions, messages)

    async def find(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str],
        wanted: Collection[str],
    ) -> Found:
        return await RedisSearch(self._redis, self._layout, wanted).find(subscriptions, messages)

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

    async def dead_letters(
        self,
        subscription: Subscription,
        *,
        limit: int,
        most_bytes: int | None = None,
        only: Collection[str] | None = None,
    ) -> Sequence[DeadLetter]:
        listing = UniqueDeadLetters(limit, most_bytes, only)
        async for letter in self._dead_letters(subscription):
            if listing.is_full:
                break
            listing.add(letter)
        return listing.letters

    async def replay(
        self,
        subscription: Subscription,
        ids: Sequence[str],
        edited: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Sequence[str]:
        keys = self._layout.of(subscription)
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
        keys = self._layout.of(subscription).ordering
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
            answers = await self._redis.batch([command(group) for group in some])
            for group, answer in zip(some, answers, strict=True):
                if answer:
                    found.update(group)
        return [id_ for id_ in dict.fromkeys(ids) if id_ in found]

    async def _dead_letters(self, subscription: Subscription) -> AsyncIterator[DeadLetter]:
        """All dead letters, oldest first."""
        key, start = self._layout.of(subscription).dead, b"-"
        while entries := await self._redis.ask("XRANGE", key, start, "+", "COUNT", PAGE):
            for entry in entries:
                yield dead_letter(subscription.name, entry)
            start = b"(" + entries[-1][0]
