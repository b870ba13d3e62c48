"""Redis Streams, 7.0 or later: a stream for each message, a consumer group for each subscription.

| key, after the prefix    | type       | holds                                                    |
|--------------------------|------------|----------------------------------------------------------|
| `stream:<message>`       | stream     | messages; every subscription to them has a group         |
| `retry:<subscription>`   | stream     | retries that are due, and replayed dead letters          |
| `delayed:<subscription>` | sorted set | retries that are not due, by their time                  |
| `dead:<subscription>`    | stream     | dead letters                                             |
| `layout`                 | hash       | over how many slots the prefix is spread                 |

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
`sentinel_password=`; `redis+cluster://user:password@host1:6379,host2/` for a Redis Cluster.
`rediss` instead of `redis` means TLS, with redis-py's options, such as `?ssl_ca_certs=ca.pem`.

All keys under a prefix are in one slot of a Cluster, and so on one master, unless the URL says
`?slots=6`: then they are spread over six slots, and masters that have equally many slots share the
work equally; see `keys` and `parts`. The number belongs to the prefix: the process that uses it
first records the number in the hash `layout`, and later ones use what is recorded. Every consumer
has a connection for reading for each slot. For commands, a process has up to 16 connections to a
server and, on a Cluster, for each slot.

Redis replicates asynchronously. After a failover, the new master may lack the last messages that
were confirmed, unless the URL says `?wait_replicas=1`: then publishing waits for that many
replicas, and messages stay unconfirmed while there are fewer. Lost acknowledgements are harmless:
the deliveries come again.

A Redis user for EventMesh needs the keys `~eventmesh:*`, or `~{eventmesh}:*` on a Cluster (with
several slots `~eventmesh*`, or `~{eventmesh*`), and
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

from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

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
from eventmesh.transports.facts import BrokerFacts
from eventmesh.transports.finding import Found
from eventmesh.transports.redis.address import locator_for, parse_broker_url
from eventmesh.transports.redis.connection import Redis
from eventmesh.transports.redis.keys import Layout, layouts, part_of_key
from eventmesh.transports.redis.parts import merging
from eventmesh.transports.redis.parts.concurrently import concurrently
from eventmesh.transports.redis.parts.consumer import SpreadConsumer
from eventmesh.transports.redis.parts.part import Part, PartConsumer
from eventmesh.transports.redis.parts.record import agreed_slots
from eventmesh.transports.redis.prefetch import Prefetch
from eventmesh.wire.envelope import Envelope


class RedisTransport:
    """The parts of a prefix as one. Until `connect` knows how many there are, it has the first."""

    atomic_batches = True
    exact_deliveries = True
    keeps_order = True
    dead_letters_by_itself = False

    def __init__(self, url: str, clock: Clock, options: TransportOptions) -> None:
        self._place = parse_broker_url(url)
        self._url = url
        self._clock = clock
        self._options = options
        self._is_cluster = self._place.kind == "cluster"
        [self._layout] = self._layouts(1)
        self._redis = self._connections(self._layout)
        self._parts = [self._part(self._redis, self._layout)]

    @property
    def slots(self) -> int:
        """Over how many slots the prefix is spread, once connected."""
        return len(self._parts)

    def _layouts(self, slots: int) -> Sequence[Layout]:
        return layouts(self._options.prefix, slots, one_slot=self._is_cluster)

    def _connections(self, layout: Layout) -> Redis:
        """Connections to the server that has this part's slot."""
        locator = locator_for(self._place, layout.record)
        return Redis(self._url, dict(self._place.options), locator)

    def _part(self, redis: Redis, layout: Layout) -> Part:
        return Part(redis, layout, self._place.wait_replicas, self._clock, self._options)

    def peer(self, *, publishing: bool) -> Peer | None:
        peers = {part.redis.peer for part in self._parts}
        return peers.pop() if len(peers) == 1 else None

    async def connect(self) -> None:
        first = self._parts[0]
        try:
            await first.connect()
            slots = await self._agreed_slots(self._place.slots, record=self._options.create_missing)
        except TypeError as error:  # redis-py raises it for an unknown option
            raise UsageError(
                f"The broker URL has an option that cannot be used: "
                f"{redact_error(error, self._url)}. See redis-py's documentation of its "
                f"connections for those that can."
            ) from None
        if slots != len(self._parts):
            self._parts = [first, *map(self._further_part, self._layouts(slots)[1:])]
        await concurrently([part.connect() for part in self._parts[1:]])

    def _further_part(self, layout: Layout) -> Part:
        # Without a Cluster, all parts are on one server, and share its connections.
        return self._part(self._connections(layout) if self._is_cluster else self._redis, layout)

    async def _agreed_slots(self, wanted: int | None, *, record: bool) -> int:
        prefix = self._options.prefix
        return await agreed_slots(self._redis, self._layout, prefix, wanted, record=record)

    @property
    def servers(self) -> Sequence[Redis]:
        """The connections to what holds the parts: to one server or, on a Cluster, for each part to
        the master of its slot."""
        return list(dict.fromkeys(part.redis for part in self._parts))

    async def close(self) -> None:
        await concurrently([redis.close() for redis in self.servers])

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        # Also repairs the record, if Redis has lost its data.
        await self._agreed_slots(len(self._parts), record=True)
        await concurrently([part.declare(subscriptions) for part in self._parts])

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        if len(self._parts) == 1:
            return await self._parts[0].publish(envelopes)
        batches: dict[int, list[Envelope]] = {}
        for envelope in envelopes:
            part = part_of_key(envelope.key, len(self._parts))
            batches.setdefault(part, []).append(envelope)
        return merging.merged_results(
            await concurrently(
                [self._parts[part].publish(batch) for part, batch in batches.items()]
            )
        )

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[PartConsumer | SpreadConsumer]:
        await self.declare([subscription])
        await concurrently([part.return_for_former(subscription) for part in self._parts])
        shared = Prefetch(prefetch)
        consumers = [(part, part.consume(subscription, shared)) for part in self._parts]
        try:
            if len(consumers) == 1:
                yield consumers[0][1]
            else:
                yield SpreadConsumer([consumer for _, consumer in consumers], shared)
        finally:
            await concurrently([part.leave(subscription, each) for part, each in consumers])

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        return merging.merged_stats(
            await concurrently([part.stats(subscription) for part in self._parts])
        )

    async def examine(self, *, thorough: bool = False) -> BrokerFacts:
        return merging.merged_facts(
            await concurrently([part.examine(thorough=thorough) for part in self._parts])
        )

    async def census(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str] = (),
        *,
        untouched: Collection[str] = (),
    ) -> Census:
        found = Census()
        await concurrently([part.census(subscriptions, messages, found) for part in self._parts])
        return found

    async def find(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str],
        wanted: Collection[str],
    ) -> Found:
        found = await concurrently(
            [part.find(subscriptions, messages, wanted) for part in self._parts]
        )
        return Found(tuple(one for each in found for one in each.messages))

    async def unrouted(
        self,
        messages: Collection[str],
        subscriptions: Sequence[Subscription] = (),
        *,
        thorough: bool = False,
    ) -> Sequence[Unrouted]:
        return merging.merged_unrouted(
            await concurrently([part.unrouted(messages, thorough=thorough) for part in self._parts])
        )

    async def purge_unrouted(
        self,
        message: str,
        subscriptions: Sequence[Subscription] = (),
        *,
        keep: int = 0,
        older_than: float | None = None,
    ) -> int:
        to_keep = dict.fromkeys(self._parts, keep)
        if keep and older_than is None and len(self._parts) > 1:
            found = await concurrently(
                [part.unrouted([message], thorough=False) for part in self._parts]
            )
            numbers = [sum(each.number for each in some) for some in found]
            kept = merging.kept_of_each(numbers, keep)
            to_keep = {
                part: kept_of_part
                for part, number, kept_of_part in zip(self._parts, numbers, kept, strict=True)
                if number > kept_of_part
            }
        return sum(
            await concurrently(
                [part.purge_unrouted(message, kept, older_than) for part, kept in to_keep.items()]
            )
        )

    async def dead_letters(
        self,
        subscription: Subscription,
        *,
        limit: int,
        most_bytes: int | None = None,
        only: Collection[str] | None = None,
    ) -> Sequence[DeadLetter]:
        slots = len(self._parts)
        wanted: list[Mapping[str, str] | None] = [None] * slots
        if only is not None:
            wanted = [*merging.ids_by_part(only, slots)]
        letters = await concurrently(
            [
                part.dead_letters(subscription, limit, most_bytes, ids)
                for part, ids in zip(self._parts, wanted, strict=True)
            ]
        )
        return merging.merged_letters(letters, limit, most_bytes, only)

    async def replay(
        self,
        subscription: Subscription,
        ids: Sequence[str],
        edited: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Sequence[str]:
        def replay(part: Part, own: Mapping[str, str]) -> Coroutine[Any, Any, Sequence[str]]:
            data = {inside: edited[id_] for inside, id_ in own.items() if id_ in edited}
            return part.replay(subscription, [*own], data)

        return await self._with_letters(ids, replay)

    async def discard(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        return await self._with_letters(ids, lambda part, own: part.discard(subscription, [*own]))

    async def _with_letters(
        self,
        ids: Sequence[str],
        act: Callable[[Part, Mapping[str, str]], Coroutine[Any, Any, Sequence[str]]],
    ) -> Sequence[str]:
        """Let each part act on its letters among these, which it gets by their ids in the part;
        returns the ids that were found."""
        by_part = merging.ids_by_part(ids, len(self._parts))
        asked = [(part, own) for part, own in zip(self._parts, by_part, strict=True) if own]
        asked = asked or [(self._parts[0], {})]  # so that Unreachable is raised in any case
        found = await concurrently([act(part, own) for part, own in asked])
        of_all = {
            own[inside] for (_, own), some in zip(asked, found, strict=True) for inside in some
        }
        return [id_ for id_ in dict.fromkeys(ids) if id_ in of_all]
