"""A lock that all processes which use a broker share.

It is an exclusive queue: RabbitMQ lets only one connection use it, and deletes it when that ends.
Whoever looks into a queue takes its messages out for a moment, so two who do at a time would each
see a part of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiormq.channel import Channel
from aiormq.exceptions import ChannelAccessRefused, ChannelLockedResource

from eventmesh.clock import Clock
from eventmesh.errors import Unreachable
from eventmesh.transports.base import Subscription
from eventmesh.transports.rabbitmq.cancellation import cancellation_first
from eventmesh.transports.rabbitmq.connection import (
    LEAVE_TIMEOUT,
    BrokerConnection,
    close_channel,
)
from eventmesh.transports.rabbitmq.topology import Topology

LOCK_TIMEOUT = 5.0
"""Seconds to wait for the lock, unless told otherwise."""


class QueueLocked(Unreachable):
    """Another process has held the lock all the time."""


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
        """Hold the lock; QueueLocked if another process has it for longer than `patience` seconds.
        Tasks that share a connection do not exclude each other."""
        channel = await self._take(patience)
        try:
            yield
        finally:
            if channel is not None:
                with suppress(Unreachable):
                    async with self._connection.guard(LEAVE_TIMEOUT):
                        await channel.queue_delete(self._queue)
                        await close_channel(channel)

    async def _take(self, patience: float) -> Channel | None:
        deadline = self._clock.monotonic() + patience
        while True:
            async with self._connection.guard(None):
                channel = await self._connection.open_channel()
                try:
                    with cancellation_first():
                        await channel.queue_declare(self._queue, exclusive=True, auto_delete=True)
                    return channel
                except ChannelAccessRefused:
                    if not self._optional:
                        raise
                    return None
                except ChannelLockedResource:
                    # RabbitMQ takes a moment to notice that its owner's connection was lost.
                    if self._clock.monotonic() >= deadline:
                        raise QueueLocked(
                            f"Another process is {self._purpose}: wait until it has finished, and "
                            f"try again."
                        ) from None
            await self._clock.sleep(LOCK_TIMEOUT / 20)


def dead_letter_lock(
    connection: BrokerConnection, topology: Topology, subscription: Subscription, clock: Clock
) -> QueueLock:
    """The lock of whoever looks into the dead letters of a subscription, or answers them."""
    queue = topology.dead_letter_lock(subscription)
    purpose = f"working on the dead letters of {subscription.name}"
    return QueueLock(connection, queue, clock, purpose, optional=True)
