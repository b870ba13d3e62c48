"""The task of a consumer that reads, on a connection of its own, and the tasks beside it.

If only the connection is lost, the reader replaces it. If Redis is unreachable, it ends, and so
does the consumer.

Redis may have a blocking read of ours when the consumer leaves, which is then ended from outside:
if its connection were cut instead, Redis could still deliver to it, or execute its commands.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.redis.connection import CommandRejected, Connection, ConnectionLost, Redis
from eventmesh.transports.redis.prefetch import Prefetch

LONGEST_WAIT = 0.5
"""The longest time in seconds that a read may block. So long leaving takes if CLIENT UNBLOCK is
forbidden."""

_STABLE_AFTER = 1.0
"""Seconds that a connection must have worked for, so that its loss only makes a new one."""


def unique_consumer_name(clock: Clock) -> str:
    """A name that no other consumer ever has, and that tells people whose it is."""
    return f"{socket.gethostname()}-{os.getpid()}-{clock.new_id()}"


class Reader:
    """See the module. The events are those of its `prefetch`: `arrived` is for the consumer to wait
    for, and `room_made` for the reader; both are also set so that the other one notices the
    end."""

    def __init__(
        self,
        redis: Redis,
        clock: Clock,
        prefetch: Prefetch,
        connected: Callable[[Connection], Awaitable[None]],
        fill: Callable[[Connection], Awaitable[None]],
    ) -> None:
        """`connected` is called with each new connection, before `fill`, which reads until
        `is_leaving`."""
        self._redis = redis
        self._clock = clock
        self._connected = connected
        self._fill = fill
        self.arrived = prefetch.arrived
        self.room_made = prefetch.room_made
        self.is_leaving = False
        self.client_id: int | None = None
        """Redis's id of the connection; None if it does not tell."""

    def start(self, beside: Iterable[asyncio.Task[None]]) -> None:
        """Begin to read. The consumer ends with the first of these tasks, or with the reader."""
        self._reading = asyncio.create_task(self._read())
        self._tasks = [self._reading, *beside]
        for task in self._tasks:
            task.add_done_callback(lambda _: self.arrived.set())

    def check(self) -> None:
        """Raise what ended a task, if one has ended."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def wait_for_room(self) -> None:
        self.room_made.clear()
        await self.room_made.wait()

    async def leave(self, give_back: Callable[[], Awaitable[None]]) -> bool:
        """End all tasks, then give back what is unsettled. False if Redis is unreachable, so that
        it was not given back. An error of a task that is not Redis's is a bug, and is raised."""
        self.is_leaving = True
        self.room_made.set()
        try:
            await self._stop()
        finally:
            for task in self._tasks:
                task.cancel()
        await asyncio.wait(self._tasks)
        try:
            await give_back()
        except Unreachable:
            return False
        finally:
            for task in self._tasks:
                error = None if task.cancelled() else task.exception()
                if error is not None and not isinstance(error, Unreachable):
                    raise error
        return True

    async def _read(self) -> None:
        while not self.is_leaving:
            serving_since = math.inf
            try:
                async with self._redis.connection() as connection:
                    await self._replace_former(connection)
                    await self._connected(connection)
                    serving_since = self._clock.monotonic()
                    await self._fill(connection)
            except ConnectionLost:
                if self._clock.monotonic() - serving_since < _STABLE_AFTER:
                    raise  # Redis is unreachable, or closes our connections

    async def _replace_former(self, connection: Connection) -> None:
        """End a read of the former connection, if Redis still has it."""
        former, self.client_id = self.client_id, None
        if former is not None:
            await connection.exchange([("CLIENT", "UNBLOCK", former)])
        with suppress(CommandRejected):  # only needed for leaving quickly
            self.client_id = await connection.ask("CLIENT", "ID")

    async def _stop(self) -> None:
        while not self._reading.done():
            if self.client_id is not None:
                with suppress(Unreachable):
                    await self._redis.ask("CLIENT", "UNBLOCK", self.client_id)
            await asyncio.wait([self._reading], timeout=0.01)
