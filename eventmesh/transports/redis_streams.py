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
and besides `wait` for wait_replicas, `cluster|slots` and `command` on a Cluster.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.exceptions import ResponseError

from eventmesh.clock import Clock
from eventmesh.errors import PublishError, Unreachable, UsageError
from eventmesh.transports import redis_scripts as scripts
from eventmesh.transports.base import (
    DeadLetter,
    Subscription,
    SubscriptionStats,
    TransportOptions,
)
from eventmesh.transports.census import Census
from eventmesh.transports.redis_address import locator_for, understand
from eventmesh.transports.redis_census import Counting
from eventmesh.transports.redis_connection import Redis, code_of
from eventmesh.transports.redis_consumer import RETURNED, RedisConsumer
from eventmesh.transports.redis_entries import dead_letter, flat, head, possible_ids
from eventmesh.transports.redis_keys import Layout
from eventmesh.transports.redis_scripts import Command, call
from eventmesh.wire.cloudevents import to_fields
from eventmesh.wire.envelope import Envelope

COUNT_LIMIT = 10_000

REPLICA_TIMEOUT = 5.0
"""Seconds in which replicas must have taken a message, where the URL asks for that."""


class RedisStreamsTransport:
    """One process's connections to a Redis."""

    atomic_batches = True
    exact_deliveries = True

    def __init__(self, url: str, clock: Clock, options: TransportOptions) -> None:
        place = understand(url)
        self._clock = clock
        self._options = options
        self._wait_replicas = place.wait_replicas
        self._layout = Layout(options.prefix, one_slot=place.kind == "cluster")
        self._redis = Redis(
            url, dict(place.options), locator_for(place, self._layout.stream("any"))
        )
        self._not_given_back: dict[str, list[RedisConsumer]] = {}

    async def connect(self) -> None:
        self._redis.open()
        try:
            # An empty transaction, because where MULTI is forbidden, what follows it would be
            # done all the same, piece by piece.
            await self._redis.batch([("MULTI",), ("EXEC",)])
        except TypeError as error:  # redis-py's word on an option that it does not know
            raise UsageError(
                f"The broker URL has an option that cannot be used: {error}. See redis-py's "
                f"documentation of its connections for those that can."
            ) from None

    async def close(self) -> None:
        await self._redis.close()

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        for subscription in subscriptions:
            keys = self._layout.of(subscription)
            await self._redis.run(scripts.DECLARE, keys.streams, keys.group)

    async def publish(self, envelopes: Sequence[Envelope]) -> None:
        refused: dict[str, str] = {}
        while waiting := [each for each in envelopes if each.id not in refused]:
            newly_refused, stored = await self._store(waiting)
            refused |= newly_refused
            if stored:
                break
        if refused:
            raise PublishError(refused)

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

    async def _store(self, envelopes: Sequence[Envelope]) -> tuple[dict[str, str], bool]:
        """Add all of these in one step. Returns those that Redis refused, and whether it stored
        the others: where our user may not write some of the streams, it stores none."""
        additions: list[Command] = [
            ("XADD", self._layout.stream(each.name), "*", *flat(to_fields(each).items()))
            for each in envelopes
        ]
        commands: list[Command] = [("MULTI",), *additions, ("EXEC",)]
        if self._wait_replicas:
            commands.append(("WAIT", self._wait_replicas, int(REPLICA_TIMEOUT * 1000)))
        answers = await self._redis.attempt(commands)
        queued, executed = answers[: len(additions) + 1], answers[len(additions) + 1]
        if isinstance(executed, ResponseError):
            if forbidden := _forbidden(envelopes, queued[1:]):
                return forbidden, False
            causes = [answer for answer in queued if isinstance(answer, ResponseError)]
            raise self._redis.refusal((causes or [executed])[0])
        if self._wait_replicas:
            self._check_replicas(answers[-1])
        refused = {
            envelope.id: str(answer)
            for envelope, answer in zip(envelopes, executed, strict=True)
            if isinstance(answer, ResponseError)
        }
        return refused, True

    def _check_replicas(self, count: Any) -> None:
        if isinstance(count, ResponseError):
            raise self._redis.refusal(count)
        if count < self._wait_replicas:
            raise Unreachable(
                f"Redis has stored messages, but {count} instead of {self._wait_replicas} of its "
                f"replicas have confirmed them in {REPLICA_TIMEOUT:.0f} s. Start the replicas, or "
                f"ask for fewer by wait_replicas in EVENTMESH_BROKER_URL."
            )

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

    async def dead_letters(self, subscription: Subscription, *, limit: int) -> Sequence[DeadLetter]:
        key = self._layout.of(subscription).dead
        entries = await self._redis.ask("XRANGE", key, "-", "+", "COUNT", limit)
        return [dead_letter(subscription.name, entry) for entry in entries]

    async def replay(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        keys = self._layout.of(subscription)
        heads = flat((id_, head(1, self._clock)) for id_ in possible_ids(ids))
        found = await self._redis.run(scripts.REPLAY, (keys.dead, keys.retry), *heads)
        return [id_.decode() for id_ in found]

    async def discard(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        key = self._layout.of(subscription).dead
        possible = possible_ids(ids)
        deleted = await self._redis.batch([("XDEL", key, id_) for id_ in possible])
        return [id_ for id_, count in zip(possible, deleted, strict=True) if count]


def _forbidden(envelopes: Sequence[Envelope], queued: Sequence[Any]) -> dict[str, str]:
    """Those that our user may not write, and what would overtake an earlier one of its key."""
    forbidden: dict[str, str] = {}
    held_keys: set[str] = set()
    for envelope, answer in zip(envelopes, queued, strict=True):
        if isinstance(answer, ResponseError) and code_of(answer) == "NOPERM":
            forbidden[envelope.id] = str(answer)
            if envelope.key is not None:
                held_keys.add(envelope.key)
        elif envelope.key in held_keys:
            forbidden[envelope.id] = "an earlier message of its key was refused"
    return forbidden
