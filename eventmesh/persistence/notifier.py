"""Waking the relays of other processes when messages were committed, by PostgreSQL's NOTIFY.

Relays also poll, so a lost notification costs time and nothing else. On databases without NOTIFY
they only poll. `listen` is the receiving side.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from eventmesh.errors import Unreachable

CHANNEL = "eventmesh_outbox"

PAUSE = 0.005
"""Seconds between two notifications of one process: each holds up, for a moment, everything that is
being committed in the database."""

LAST_WITHIN = 1.0
"""Seconds that the last notification may take while the database is being closed."""

# In a transaction of its own, and one that does not wait for the disk: within the transactions that
# it is about, it would make them wait for one another.
_NOTIFY = text("SELECT set_config('synchronous_commit', 'off', true), pg_notify(:channel, :sender)")


class Notifier:
    """Wakes the relays of other processes. Many requests become few notifications, and there is
    always one after the last request."""

    def __init__(
        self,
        reading: Callable[[], AbstractAsyncContextManager[AsyncConnection]],
        *,
        can_notify: bool,
    ) -> None:
        self.sender = secrets.token_hex(8)
        """Sent with each notification, so that a process can ignore its own."""
        self.is_muted = False
        """Whether nobody is to be woken: a relay of this process holds all leases."""
        self._reading = reading
        self._can_notify = can_notify
        self._is_wanted = False
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def notify_soon(self) -> None:
        """Notify in the background, if the database can, until `close`."""
        if self.is_muted or self._closing.is_set() or not self._can_notify:
            return
        self._is_wanted = True
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._notify_while_wanted())

    async def notify(self) -> None:
        """Notify now, if the database can; Unreachable."""
        if self._can_notify:
            async with self._reading() as connection:
                await connection.execute(_NOTIFY, {"channel": CHANNEL, "sender": self.sender})

    async def close(self) -> None:
        """Send the notification that was asked for last, unless the database does not answer: a
        program that publishes and ends at once would leave its messages to the next poll."""
        await asyncio.sleep(0)  # a commit asks for it in the next turn of the loop
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=LAST_WITHIN)
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _notify_while_wanted(self) -> None:
        while self._is_wanted:
            self._is_wanted = False
            with suppress(Unreachable):  # relays poll
                await self.notify()
            with suppress(TimeoutError):
                async with asyncio.timeout(PAUSE):
                    await self._closing.wait()
