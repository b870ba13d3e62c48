"""A lock that all processes which use a broker share.

It is an exclusive queue: RabbitMQ lets only one connection use it, and deletes it when that ends.
Tasks that share a connection take turns before that. Whoever looks into a queue takes its messages
out for a moment, so two who do at a time would each see a part of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from aiormq.channel import Channel
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource

from eventmesh.clock import Clock
from eventmesh.errors import Busy, Unreachable
from eventmesh.transports.base import Subscription
from eventmesh.transports.rabbitmq.channels import in_background
from eventmesh.transports.rabbitmq.connection import (
    LEAVE_TIMEOUT,
    BrokerConnection,
    close_channel,
)
from eventmesh.transports.rabbitmq.topology import Topology

LOCK_TIMEOUT = 5.0
"""Seconds to wait for the lock, unless told otherwise."""


class QueueLocked(Busy):
    """Another process, or another task of this one, has held the lock all the time."""


class QueueLock:
    """The lock with the name of this queue. `purpose` says what its owners do, for whoever waits:
    "rerouting unrouted messages". If it is `optional`, a user who may not declare queues goes on
    without it."""

    def __init__(
        self,
        connection: BrokerConnection,
        queue: str,
        clock: Clock,
        purpose: str,
        *,
        optional: bool = False,
    ) -> None:
        self._connection = connection
        self._queue = queue
        self._clock = clock
        self._purpose = purpose
        self._optional = optional

    @asynccontextmanager
    async def held(self, patience: float = LOCK_TIMEOUT) -> AsyncIterator[None]:
        """Hold the lock; QueueLocked if another task or process has it for longer than `patience`
        seconds. After a cancellation it is given back in the background."""
        deadline = self._clock.monotonic() + patience
        turn = self._connection.turn(self._queue)  # the queue excludes other connections only
        try:
            async with asyncio.timeout(patience):
                await turn.acquire()
        except TimeoutError:
            raise self._locked() from None
        taking = in_background(self._take())
        try:
            while not await asyncio.shield(taking):
                if self._clock.monotonic() >= deadline:
                    raise self._locked()
                await self._clock.sleep(LOCK_TIMEOUT / 20)
                taking = in_background(self._take())
            yield
        except asyncio.CancelledError:
            in_background(self._give_back(taking, turn))
            raise
        except BaseException:
            await asyncio.shield(in_background(self._give_back(taking, turn)))
            raise
        await asyncio.shield(in_background(self._give_back(taking, turn)))

    async def _take(self) -> _Taken | None:
        """Try to take the lock; None if another connection has it."""
        async with self._connection.guard(None):
            channel = await self._connection.open_channel()
            try:
                await channel.queue_declare(self._queue, exclusive=True, auto_delete=True)
            except ChannelAccessRefused:
                if not self._optional:
                    raise
                return _Taken(None)
            except ChannelLockedResource:
                # RabbitMQ takes a moment to notice that its owner's connection was lost.
                return None
        return _Taken(channel)

    async def _give_back(self, taking: asyncio.Task[_Taken | None], turn: asyncio.Lock) -> None:
        """Give back what was taken, or is being taken just now. Never fails: the queue ends with
        its connection."""
        try:
            with suppress(Unreachable):
                taken = await taking
                if taken is not None and taken.channel is not None:
                    async with self._connection.guard(LEAVE_TIMEOUT):
                        await taken.channel.queue_delete(self._queue)
                        await close_channel(taken.channel)
        finally:
            turn.release()

    def _locked(self) -> QueueLocked:
        return QueueLocked(
            f"Another process is {self._purpose}: wait until it has finished, and try again."
        )


@dataclass(frozen=True, slots=True)
class _Taken:
    """A lock that was taken over this channel; over none, where the user may not declare it."""

    channel: Channel | None


def dead_letter_lock(
    connection: BrokerConnection, topology: Topology, subscription: Subscription, clock: Clock
) -> QueueLock:
    """The lock of whoever looks into the dead letters of a subscription, or answers them."""
    queue = topology.dead_letter_lock(subscription)
    purpose = f"working on the dead letters of {subscription.name}"
    return QueueLock(connection, queue, clock, purpose, optional=True)
