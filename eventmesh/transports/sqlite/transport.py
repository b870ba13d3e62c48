"""A broker in one SQLite file: durable, for several processes on one machine, without a server.

It is the default for development. Each call is one short transaction for a batch, run in a thread.
A waiting consumer notices commits of other processes by polling `PRAGMA data_version`, which reads
shared memory and no table.

A file that was deleted or replaced lives on for processes that have it open. So each call and each
poll checks that the path still leads to our file. If not, we open the file that is there now, and
consumers of the old one end, because its row numbers mean nothing in the new one. Creating a file
deletes the `-wal` and `-shm` that SQLite left of the old one; whoever replaces a file in use must
do that, too. Subscriptions that somebody deletes from the file are declared again by their
consumers.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.base import (
    ALL_CONFIRMED,
    DeadLetter,
    Delivery,
    PublishResult,
    Subscription,
    SubscriptionStats,
    TransportOptions,
    Unrouted,
)
from eventmesh.transports.census import Census
from eventmesh.transports.outcome import Outcome, RetryAfter
from eventmesh.transports.sqlite.file import File, connect, file_at, is_broker, path_of
from eventmesh.transports.sqlite.store import SqliteStore
from eventmesh.wire.envelope import Envelope

SHORTEST_POLL, LONGEST_POLL = 0.002, 0.03
"""Seconds between two polls for commits of other processes. Measured on a busy machine: under
traffic, p50 3.3 ms at 3 to 6% of a core; after 15 s without a commit, p50 23 ms at about 1%.
Commits of this process are noticed at once."""

RELAXING = 1 / 500
"""How many seconds each second without a commit adds to the poll interval."""

DECLARE_INTERVAL = 1.0
"""Seconds until a consumer notices that its subscription was deleted from the file."""

PURGED_AT_ONCE = 10_000
"""Messages deleted in one transaction; publishers wait less than 0.1 s for it."""

T = TypeVar("T")


class SqliteTransport:
    """One process's connection to the broker file."""

    atomic_batches = True
    exact_deliveries = True

    def __init__(self, url: str, clock: Clock, options: TransportOptions) -> None:
        self._path = path_of(url)
        self._clock = clock
        self._options = options
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="eventmesh-sqlite")
        self._store: SqliteStore | None = None
        self._watcher: _Watcher | None = None

    async def connect(self) -> None:
        if not self._options.create_missing and not await self._call(lambda: is_broker(self._path)):
            return
        self._store = await self._call(lambda: SqliteStore(self._path, self._clock))
        with _translated(self._path):
            self._watcher = _Watcher(self._path, self._clock)

    async def close(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            await watcher.close()
        if self._store is not None:
            await self._call(self._close_store)
        self._thread.shutdown(wait=False)

    def _close_store(self) -> None:
        """Runs in the store's thread, so that no other call opens another file meanwhile."""
        store, self._store = self._store, None
        if store is not None:
            store.close()

    async def declare(self, subscriptions: Sequence[Subscription]) -> None:
        if await self.run(lambda store: store.declare(subscriptions)):
            self.wake()

    async def publish(self, envelopes: Sequence[Envelope]) -> PublishResult:
        if envelopes:
            try:
                await self.run(lambda store: store.publish(envelopes))
            except Unreachable as error:
                return PublishResult.interrupted(envelopes, error)
            self.wake()
        return ALL_CONFIRMED

    @asynccontextmanager
    async def consume(
        self, subscription: Subscription, *, prefetch: int
    ) -> AsyncIterator[_SqliteConsumer]:
        await self.declare([subscription])
        file = await self.run(lambda store: store.file)
        consumer = _SqliteConsumer(
            self, file, subscription.name, prefetch, self._clock, self._options
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
        return await self.run(lambda store: store.stats(subscription.name))

    async def census(
        self,
        subscriptions: Sequence[Subscription],
        messages: Collection[str] = (),
        *,
        untouched: Collection[str] = (),
    ) -> Census:
        if not self._options.create_missing and self._store is None:
            return Census()
        names = [subscription.name for subscription in subscriptions]
        return await self.run(lambda store: store.census(names, messages))

    async def unrouted(
        self,
        messages: Collection[str],
        subscriptions: Sequence[Subscription] = (),
        *,
        thorough: bool = False,
    ) -> Sequence[Unrouted]:
        if not self._options.create_missing and self._store is None:
            return ()
        if thorough:
            return await self.run(lambda store: store.unrouted())
        return await self.run(lambda store: store.count_unrouted(messages))

    async def purge_unrouted(
        self,
        message: str,
        subscriptions: Sequence[Subscription] = (),
        *,
        keep: int = 0,
        older_than: float | None = None,
    ) -> int:
        if not self._options.create_missing and self._store is None:
            return 0
        purged, more = 0, True
        while more:
            number = await self.run(
                lambda store: store.purge_unrouted(message, keep, older_than, PURGED_AT_ONCE)
            )
            purged, more = purged + number, number == PURGED_AT_ONCE
        return purged

    async def dead_letters(self, subscription: Subscription, *, limit: int) -> Sequence[DeadLetter]:
        return await self.run(lambda store: store.dead_letters(subscription.name, limit))

    async def replay(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        found = await self.run(lambda store: store.replay(subscription.name, ids))
        self.wake()
        return found

    async def discard(self, subscription: Subscription, ids: Sequence[str]) -> Sequence[str]:
        return await self.run(lambda store: store.discard(subscription.name, ids))

    def wake(self) -> None:
        """Make every waiting consumer of this process look for messages now."""
        if self._watcher is not None:
            self._watcher.wake()

    def watch(self) -> asyncio.Future[None]:
        """A future that completes when any process commits after this call."""
        if self._watcher is None:
            raise Unreachable(f"The broker file {self._path} is not open: connect first.")
        return self._watcher.watch()

    async def run(self, work: Callable[[SqliteStore], T], *, only_in: File | None = None) -> T:
        """Run this with the store, in its thread. Unreachable if the file cannot be used, or is no
        longer `only_in`."""
        if self._store is None:
            raise Unreachable(f"The broker file {self._path} is not open: connect first.")

        def do() -> T:
            store = self._store_in_place()
            if only_in is not None and store.file != only_in:
                raise Unreachable(self._replaced())
            return work(store)

        return await self._call(do)

    def _store_in_place(self) -> SqliteStore:
        """The store of the file that is at our path now. Runs in the store's thread."""
        store = self._store
        if store is None:
            raise Unreachable(f"The broker file {self._path} is not open: connect first.")
        if store.file == file_at(self._path):
            return store
        if not self._options.create_missing and not is_broker(self._path):
            raise Unreachable(self._replaced())
        new = SqliteStore(self._path, self._clock)
        store.close()
        self._store = new
        return new

    def _replaced(self) -> str:
        return (
            f"The broker file {self._path} was deleted or replaced while it was used. What it held "
            f"is gone; the file that is there now is used."
        )

    async def _call(self, work: Callable[[], T]) -> T:
        with _translated(self._path):
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class _SqliteConsumer:
    """Leases rows; `keep_alive` renews the leases while the consumer is open."""

    def __init__(
        self,
        transport: SqliteTransport,
        file: File,
        subscription: str,
        prefetch: int,
        clock: Clock,
        options: TransportOptions,
    ) -> None:
        self._transport = transport
        self._file = file
        self._subscription = subscription
        self._prefetch = prefetch
        self._clock = clock
        self._lease_time = options.visibility_timeout
        self._owner = clock.new_id()
        self._held: set[int] = set()
        self._room = asyncio.Event()
        self._leasing: asyncio.Future[list[Delivery]] | None = None

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while True:
            while len(self._held) >= self._prefetch:
                self._room.clear()
                await self._room.wait()
            changed = self._transport.watch()
            try:
                deliveries = await self._lease(min(limit, self._prefetch - len(self._held)))
                if deliveries:
                    self._held.update(delivery.token for delivery in deliveries)
                    return deliveries
                await self._wait(changed)
            finally:
                changed.cancel()

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        died_at = self._clock.now()
        mine = [(d, outcome) for d, outcome in settlements if d.token in self._held]
        if not mine:
            return
        letter_ids = [self._clock.new_id() for _ in mine]
        await self._run(lambda store: store.settle(self._owner, mine, letter_ids, died_at))
        self._held.difference_update(delivery.token for delivery, _ in mine)
        self._room.set()
        if any(isinstance(outcome, RetryAfter) for _, outcome in mine):
            self._transport.wake()

    async def keep_alive(self) -> None:
        """Renew the leases well before they expire, until cancelled."""
        while True:
            await self._clock.sleep(self._lease_time / 3)
            if not self._held and self._leasing is None:
                continue
            with suppress(Unreachable):  # the next receive or settle raises it
                await self._run(lambda store: store.renew(self._owner, self._lease_time))

    async def return_leased(self) -> None:
        """End all leases of this consumer, also of rows that `receive` has not returned."""
        if self._leasing is not None:
            await asyncio.wait([self._leasing])
        with suppress(Unreachable):  # then the leases expire
            await self._run(lambda store: store.release(self._owner, self._held))
        self._transport.wake()

    async def _run(self, work: Callable[[SqliteStore], T]) -> T:
        return await self._transport.run(work, only_in=self._file)

    async def _lease(self, limit: int) -> list[Delivery]:
        # Survives a cancellation: rows that the thread leases meanwhile go to the next call.
        if self._leasing is None:
            self._leasing = asyncio.ensure_future(
                self._run(
                    lambda store: store.lease(
                        self._subscription, self._owner, limit, self._lease_time
                    )
                )
            )
        try:
            deliveries = await asyncio.shield(self._leasing)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._leasing = None
            raise
        self._leasing = None
        return deliveries

    async def _wait(self, changed: asyncio.Future[None]) -> None:
        """Return when somebody commits, a delay ends, or a dead consumer's lease expires."""
        seconds = await self._run(lambda store: store.next_in(self._subscription))
        await asyncio.wait([changed], timeout=None if seconds is None else max(seconds, 0.0))


class _Watcher:
    """Polls for commits while any consumer waits for one; the longer there was none, the slower.
    Runs on the event loop: a poll takes microseconds and no lock."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._file = file_at(path)
        self._connection = connect(path)
        self._clock = clock
        self._waiting: set[asyncio.Future[None]] = set()
        self._wanted = asyncio.Event()
        self._changed_at = clock.monotonic()
        self._polling = asyncio.ensure_future(self._poll())

    def watch(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        self._wanted.set()
        return future

    def wake(self) -> None:
        """Wake all waiting consumers."""
        self._changed_at = self._clock.monotonic()
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def close(self) -> None:
        self._polling.cancel()
        await asyncio.wait([self._polling])
        self._connection.close()

    async def _poll(self) -> None:
        seen: object = None
        while True:
            if not self._waiting:
                self._wanted.clear()
                await self._wanted.wait()
            version = self._version()
            if version != seen:
                seen = version
                self.wake()
            quiet = self._clock.monotonic() - self._changed_at
            await self._clock.sleep(min(max(quiet * RELAXING, SHORTEST_POLL), LONGEST_POLL))

    def _version(self) -> object:
        """A value that changes with each commit, and when the file is replaced or gone; the woken
        consumer then opens or creates the file, or raises why it cannot."""
        file = file_at(self._path)
        try:
            if file is not None and file != self._file:
                self._connection.close()
                self._connection = connect(self._path)
                self._file = file
            version = self._connection.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error:
            return (file, None)
        return (file, version)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise Unreachable(
            f"The broker file {path} cannot be used: {error}. Check that its folder can be "
            f"written, that the disk is not full and that the file is a SQLite database."
        ) from error
