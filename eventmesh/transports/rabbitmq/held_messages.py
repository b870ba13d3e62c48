"""Taking the oldest messages out of a queue: some are acknowledged, the others go back in order.

This is harder than `basic.get` for each. When a channel is closed, RabbitMQ drops acknowledgements
that it has read but not yet passed on to the quorum queue
(https://github.com/rabbitmq/rabbitmq-server/issues/10327), so their messages are delivered again. A
channel has at most 33 commands on their way to a queue, and postpones further ones. For example, of
100 messages that were fetched by `basic.get`, acknowledged, and left by closing the channel, up to
67 came back. One acknowledgement with `multiple=True` does not help: each message fetched by
`basic.get` counts as a consumer of its own, and needs a command of its own.

So one consumer takes the messages, and is cancelled before the channel is closed: RabbitMQ passes
on everything that it has postponed for a consumer before it cancels it, and confirms the
cancellation only when the queue has processed both. Only the first message is fetched by
`basic.get`, which tells how many there are; its acknowledgement is the first command, and is never
postponed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress

from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from aiormq.exceptions import ChannelNotFoundEntity
from pamqp.commands import Basic

from eventmesh.transports.rabbitmq.connection import (
    CONNECT_TIMEOUT,
    CONNECTION_ERRORS,
    MAX_HELD,
    BrokerConnection,
)
from eventmesh.transports.rabbitmq.messages import OutgoingMessage
from eventmesh.transports.rabbitmq.publishing import Batch, Publisher
from eventmesh.transports.rabbitmq.topology import Entity

QUIET = 0.15
"""Seconds without a delivery after which others must have taken the rest."""

RETURNED_AT_ONCE = 32
"""Messages that are given back by one command: of more, RabbitMQ does not keep the order."""


class HeldMessages:
    """The oldest messages of a queue, held by a channel."""

    def __init__(self, channel: Channel, first: DeliveredMessage | None, limit: int) -> None:
        self._channel = channel
        self._arrived: list[DeliveredMessage] = []  # and not returned by `next`
        self._unsettled: dict[int, None] = {}
        self._arrival = asyncio.Event()
        self._left = self._max_held = 0
        if first is not None:
            self._left = min(limit, 1 + (first.message_count or 0))
            self._add(first)

    async def start(self, queue: str, at_once: int) -> None:
        """Take the others too, but never hold more than `at_once`."""
        self._max_held = min(self._left, at_once)
        if self._max_held > 1:
            await self._channel.basic_qos(prefetch_count=self._max_held - 1)
            await self._channel.basic_consume(queue, self._take)

    async def next(self, limit: int = MAX_HELD) -> list[DeliveredMessage]:
        """The next messages, up to `limit`: none after the last, or while too many of the earlier
        ones are unacknowledged."""
        held = len(self._unsettled) - len(self._arrived)
        number = min(limit, self._left, self._max_held - held)
        while len(self._arrived) < number and await self._more_arrive():
            pass
        batch = self._arrived[: max(number, 0)]
        del self._arrived[: len(batch)]
        self._left -= len(batch)
        return batch

    async def acknowledge(self, messages: Iterable[DeliveredMessage]) -> None:
        """Delete these from the queue; certain once the context is left."""
        wanted = sorted(_tag_of(message) for message in messages)
        oldest = list(self._unsettled)[: len(wanted)]
        if wanted and wanted == oldest:
            await self._channel.basic_ack(wanted[-1], multiple=True)
        else:
            for tag in wanted:
                await self._channel.basic_ack(tag)
        for tag in wanted:
            del self._unsettled[tag]

    async def stop(self) -> None:
        """Stop consuming. RabbitMQ passes on the acknowledgements that it has postponed."""
        for consumer in list(self._channel.consumers):
            await self._channel.basic_cancel(consumer)

    async def give_back(self) -> None:
        """Return everything unacknowledged to the front of the queue, in its order."""
        await self.stop()
        tags = list(self._unsettled)
        for start in range(0, len(tags), RETURNED_AT_ONCE):
            last = tags[start : start + RETURNED_AT_ONCE][-1]
            await self._channel.basic_nack(last, multiple=True, requeue=True)
        self._unsettled.clear()

    async def _take(self, message: DeliveredMessage) -> None:
        self._add(message)

    def _add(self, message: DeliveredMessage) -> None:
        self._arrived.append(message)
        self._unsettled[_tag_of(message)] = None
        self._arrival.set()

    async def _more_arrive(self) -> bool:
        self._arrival.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET):
                await self._arrival.wait()
        if not self._arrival.is_set():
            # Whatever RabbitMQ has delivered until now arrives before its answer to this, even if
            # this process is too busy to read in time.
            await self._channel.basic_qos(prefetch_count=self._max_held - 1)
        return self._arrival.is_set()


@asynccontextmanager
async def hold_messages(
    connection: BrokerConnection, queue: str, limit: int = MAX_HELD, *, at_once: int = MAX_HELD
) -> AsyncIterator[HeldMessages]:
    """Hold the oldest messages of the queue, up to `limit`, and never more than were there at the
    start, because what others give back meanwhile could come again and again. Holds nothing if the
    queue does not exist. What is not acknowledged goes back on leaving."""
    async with connection.guard(None), connection.channel() as channel:
        held = HeldMessages(channel, await fetch(channel, queue), limit)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await held.start(queue, at_once)
            yield held
        except Exception:
            with suppress(*CONNECTION_ERRORS):  # the first error says more
                await held.give_back()
            raise
        if not channel.is_closed:  # as it is if the queue does not exist
            await held.give_back()


async def move(
    held: HeldMessages,
    groups: Sequence[Sequence[DeliveredMessage]],
    copies: Sequence[OutgoingMessage],
    publisher: Publisher,
    needs: Sequence[Entity],
) -> dict[int, BaseException]:
    """Publish the copy of each group of held messages, and delete the groups whose copy the broker
    has. Returns why copies were rejected, by their place."""
    if not groups:
        return {}
    batch = Batch(list(copies))
    try:
        return await publisher.publish(batch, needs)
    finally:
        await held.acknowledge(message for place in batch.confirmed for message in groups[place])


async def fetch(channel: Channel, queue: str) -> DeliveredMessage | None:
    """The oldest message of the queue, held by the channel; None if there is none. Because it is
    fetched by `basic.get`, few may be acknowledged on one channel: see above."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            message = await channel.basic_get(queue)
    except ChannelNotFoundEntity:
        return None
    return None if isinstance(message.delivery, Basic.GetEmpty) else message


def _tag_of(message: DeliveredMessage) -> int:
    """The number of a delivery on its channel."""
    tag: int = message.delivery.delivery_tag  # type: ignore[union-attr, assignment]
    return tag
