"""A broker in one SQLite file: durable, for several processes on one machine, without a server.

It is the default for development. Each call is one short transaction for a batch, run in a thread
(`connection`). A waiting consumer (`consumer`) notices commits of other processes by polling
(`commit_watcher`).

A file that is deleted or replaced while it is used ends the consumers of the old one, and the file
that is there now is used. Subscriptions that somebody deletes from the file are declared again by
their consumers.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from types import MappingProxyType

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.tracing.place import Peer
from eventmesh.transports.base import (
    ALL_CONFIRMED,
    DeadLetter,
    PublishResult,
    Subscription,
    SubscriptionStats,
    TransportOptions,
    Unrouted,
)
from eventmesh.transports.census import Census
from eventmesh.transports.facts import BrokerFacts, FileFacts
from eventmesh.transports.finding import Found
from eventmesh.transports.sqlite.connection import FileConnection
from eventmesh.transports.sqlite.consumer import SqliteConsumer
from eventmesh.transports.sqlite.file import path_of
from eventmesh.wire.envelope import Envelope

DECLARE_INTERVAL = 1.0
"""Seconds until a consumer notices that its subscription was deleted from the file."""

PURGED_AT_ONCE = 10_000
"""Messages deleted in one transaction; publishers wait less than 0.1 s for it."""


class SqliteTransport:
    """One process's connection to the broker file."""

    atomic_batches = True
    exact_deliveries = True
    keeps_order = True
    dead_letters_by_itself = False

    def __init__(self, url: str, clock: Clock, options: TransportOptions) -> None:
        self._clock = clock
        self._options = options
        self._path = path_of(url)
        self._connection = FileConnection(self._path, clock, create_missing=options.create_missing)

    def peer(self, *, publishing: bool) -> Peer | None:
        return None

    async def connect(self) -> None:
        await self._connection.connect()

    async def close(self) -> None:
        await self._connection.close()

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        if await self._connection.run(lambda store: store.declare(subscriptions)):
            self._connection.wake()

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        if envelopes:
            try:
                await self._connection.run(lambda store: store.publish(envelopes))
            except Unreachable as error:
                return PublishResult.interrupted(envelopes, error)
            self._connection.wake()
        return ALL_CONFIRMED

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[SqliteConsumer]:
        await self.declare([subscription])
        file = await self._connection.run(lambda store: store.file)
        consumer = SqliteConsumer(
            self._connection, file, subscription, prefetch, self._clock, self._options
        )
        upkeep = [
            asyncio.ensure_future(consumer.keep_alive()),
            asyncio.ensure_future(self._keep_declared(subscription)),
        ]
        try:
            yield consumer
        finally:
            for task in upkeep:
                task.cancel()
            await asyncio.wait(upkeep)
            await consumer.return_leased()

    async def _keep_declared(self, subscription: Subscription) -> None:
        """Declare the subscription again whenever it is missing, until cancelled."""
        while True:
            await self._clock.sleep(DECLARE_INTERVAL)
            with suppress(Unreachable):  # the next receive or settle raises it
                await self.declare([subscription])

    async def stats(self, subscription: Subscription) -> SubscriptionStats:
        return await self._connection.run(lambda store: store.stats(subscription.name))

    async def examine(self, *, thorough: bool = False) -> BrokerFacts:
        known = await self._connection.run(lambda store: store.subscriptions())
        path, free = self._path, shutil.disk_usage(self._path.parent).free
        return BrokerFacts(
            sqlite3.sqlite_version,
            0.0,
            subscriptions=tuple(known),
            file=FileFacts(str(path), os.access(path, os.W_OK), free),
        )

    async def census(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str] = (),
        *,
        untouched: Collection[str] = (),
    ) -> Census:
        if self._connection.is_absent:
            return Census()
        names = [subscription.name for subscription in subscriptions]
        return await self._connection.run(lambda store: store.census(names, messages))

    async def find(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str],
        wanted: Collection[str],
    ) -> Found:
        if self._connection.is_absent:
            return Found()
        names = [subscription.name for subscription in subscriptions]
        return await self._connection.run(lambda store: store.find(names, messages, wanted))

    async def unrouted(
        self,
        messages: Collection[str],
        subscriptions: Sequence[Subscription] = (),
        *,
        thorough: bool = False,
    ) -> Sequence[Unrouted]:
        if self._connection.is_absent:
            return ()
        if thorough:
            return await self._connection.run(lambda store: store.unrouted())
        return await self._connection.run(lambda store: store.count_unrouted(messages))

    async def purge_unrouted(
        self,
        message: str,
        subscriptions: Sequence[Subscription] = (),
        *,
        keep: int = 0,
        older_than: float | None = None,
    ) -> int:
        if self._connection.is_absent:
            return 0
        purged, more = 0, True
        while more:
            number = await self._connection.run(
                lambda store: store.purge_unrouted(message, keep, older_than, PURGED_AT_ONCE)
            )
            purged, more = purged + number, number == PURGED_AT_ONCE
        return purged

    async def dead_letters(
        self,
        subscription: Subscription,
        *,
        limit: int,
        most_bytes: int | None = None,
        only: Collection[str] | None = None,
    ) -> Sequence[DeadLetter]:
        if self._connection.is_absent:
            return ()
        return await self._connection.run(
            lambda store: store.dead_letters(subscription.name, limit, most_bytes, only)
        )

    async def replay(
        self,
        subscription: Subscription,
        ids: Sequence[str],
        edited: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Sequence[str]:
        found = await self._connection.run(
            lambda store: store.replay(subscription.name, ids, edited)
        )
        self._connection.wake()
        return found

    async def discard(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        return await self._connection.run(lambda store: store.discard(subscription.name, ids))
