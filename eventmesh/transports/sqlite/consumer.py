"""Consuming one subscription of the broker file: leasing rows, renewing the leases, settling.

A consumer belongs to the file that was open when it began. When another file is at the path, its
row numbers mean nothing any more, and every call raises Unreachable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.base import Delivery, Subscription, TransportOptions
from eventmesh.transports.ordering import in_effect
from eventmesh.transports.outcome import Done, Outcome, RetryAfter
from eventmesh.transports.sqlite.connection import FileConnection
from eventmesh.transports.sqlite.file import File
from eventmesh.transports.sqlite.store import SqliteStore

T = TypeVar("T")


class SqliteConsumer:
    """Leases rows; `keep_alive` renews the leases while the consumer is open."""

    def __init__(
        self,
        connection: FileConnection,
        file: File,
        subscription: Subscription,
        prefetch: int,
        clock: Clock,
        options: TransportOptions,
    ) -> None:
        self._connection = connection
        self._file = file
        self._subscription = subscription.name
        self._order = subscription.order
        self._prefetch = prefetch
        self._clock = clock
        self._lease_time = options.visibility_timeout
        self._owner = clock.new_id()
        self._held: dict[int, Delivery] = {}
        self._room = asyncio.Event()
        self._leasing: asyncio.Future[list[Delivery]] | None = None

    async def receive(self, limit: int) -> Sequence[Delivery]:
        while True:
            while len(self._held) >= self._prefetch:
                self._room.clear()
                await self._room.wait()
            changed = self._connection.watch()
            try:
                deliveries = await self._lease(min(limit, self._prefetch - len(self._held)))
                if deliveries:
                    self._held |= {delivery.token: delivery for delivery in deliveries}
                    return deliveries
                await self._wait(changed)
            finally:
                changed.cancel()

    async def settle(self, settlements: Sequence[tuple[Delivery, Outcome]]) -> None:
        died_at = self._clock.now()
        mine = [(d, outcome) for d, outcome in settlements if self._held.get(d.token) is d]
        if self._order is not None:
            mine = in_effect(mine)
        if not mine:
            return
        letter_ids = [self._clock.new_id() for _ in mine]
        await self._run(
            lambda store: store.settle(self._owner, mine, letter_ids, died_at, self._order)
        )
        for delivery, outcome in mine:
            del self._held[delivery.token]
            if self._order is not None and not isinstance(outcome, Done):
                self._forget_after(delivery)
        self._room.set()
        if self._order is not None or any(isinstance(outcome, RetryAfter) for _, outcome in mine):
            self._connection.wake()

    def _forget_after(self, failed: Delivery) -> None:
        """Those of its key that were received after it were taken back."""
        key = failed.envelope.key
        for token, delivery in list(self._held.items()):
            if token > failed.token and delivery.envelope.key == key:
                del self._held[token]

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
        self._connection.wake()

    async def _run(self, work: Callable[[SqliteStore], T]) -> T:
        return await self._connection.run(work, only_in=self._file)

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
